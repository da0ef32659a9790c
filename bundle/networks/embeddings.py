# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The audit's networks: an embedding in which copies of an image lie close together, and a verifier of pairs.

No walk and no gate ever sees them. Their plain convolutions differ from the guides' and the gate's architectures, and
each is trained with a seed and a loss of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bundle.networks.standardise import resized, standardised
from bundle.networks.weights import register_network

__all__ = ["ROWS", "ContrastiveEmbedding", "SiameseVerifier"]

WIDTHS = (32, 64, 96, 128, 192)
#: Images that are compared with a gallery at a time.
ROWS = 64


class _PlainTrunk(nn.Module):
    """Blocks of two 3 x 3 convolutions with batch norm (Simonyan and Zisserman, ICLR 2015), the image halved by each.

    Images are brought to ``side`` pixels and standardised first.
    """

    arguments: dict[str, Any]

    def __init__(self, channels: int, side: int, widths: Sequence[int], cells: int, dimension: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for block, width in enumerate(widths):
            for index in range(2):
                stride = 2 if block == 0 and index == 0 else 1
                layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)]
                before = width
            if block < len(widths) - 1:
                layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(cells), nn.Flatten())
        self.projection = nn.Linear(before * cells**2, dimension)
        self.side = side
        self.dimension = dimension
        self.arguments = {"channels": channels, "side": side, "widths": list(widths), "dimension": dimension}

    def features(self, image: Tensor) -> Tensor:
        """Maps images [B, C, H, W] in [-1, 1] to features [B, dimension] in fp32."""
        image = standardised(resized(image, self.side)).contiguous(memory_format=torch.channels_last)
        features = self.layers(image)
        with torch.autocast(image.device.type, enabled=False):
            return self.projection(features.float())

    def compare(self, x: Tensor, y: Tensor) -> Tensor:
        """Maps what `forward` returned of two sets, [N, dimension] and [M, dimension], to their similarity [N, M]."""
        raise NotImplementedError

    @torch.no_grad()
    def nearest(self, x: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
        """Looks up in a gallery which images are most similar.

        Args:
            x: what `forward` returned of them, [N, dimension].
            gallery: what it returned of the images to look among, [M, dimension], M >= 1.

        Returns:
            The similarity [N] to the most similar, and its index [N]. Blocks of ``x`` keep the memory small.
        """
        # Filled in place: small results between large temporary blocks would keep the blocks from being used again.
        similarity, index = torch.empty(len(x)), torch.empty(len(x), dtype=torch.int64)
        for number, block in enumerate(self.similarity(x, gallery)):
            rows = slice(number * ROWS, (number + 1) * ROWS)
            similarity[rows], index[rows] = block.max(dim=1)
        return similarity, index

    def similarity(self, x: Tensor, gallery: Tensor) -> Iterator[Tensor]:
        """Yields `compare` of x [N, dimension] and a gallery [M, dimension], by blocks of `ROWS` rows, on the CPU."""
        device = self.projection.weight.device
        gallery = gallery.to(device)
        for block in x.split(ROWS):
            with torch.no_grad():
                compared = self.compare(block.to(device), gallery)
            yield compared.cpu()


@register_network
class ContrastiveEmbedding(_PlainTrunk):
    """f: maps an image to a point on the unit sphere, and every changed copy of it to nearly the same point.

    Correlations of two images are scalar products of their points (Dar et al., arXiv 2402.01054).

    Args:
        channels: of the images, 1 or 3.
        side: pixels to which every image is brought.
        widths: channels of each block.
        dimension: of the sphere's space.
    """

    def __init__(self, channels: int, side: int = 64, widths: Sequence[int] = WIDTHS, dimension: int = 128) -> None:
        super().__init__(channels, side, widths, 2, dimension)

    def forward(self, image: Tensor) -> Tensor:
        """Maps images [B, C, H, W] in [-1, 1] to unit vectors [B, dimension] in fp32."""
        return F.normalize(self.features(image))

    def compare(self, x: Tensor, y: Tensor) -> Tensor:
        """Maps unit vectors [N, dimension] and [M, dimension] to their correlations [N, M]."""
        return x @ y.T


@register_network
class SiameseVerifier(_PlainTrunk):
    r"""Says of two images whether they show the same patient.

    With g the features, the logit is ``b + sum_k v_k |s(g_k(x)) - s(g_k(y))|``, s the logistic function: the network of
    Packhäuser et al. (Scientific Reports 2022), "Deep learning-based patient re-identification is able to exploit the
    biometric nature of medical chest X-ray data", on a smaller trunk.

    Args:
        channels: of the images, 1 or 3.
        side: pixels to which every image is brought.
        widths: channels of each block.
        dimension: number of features.
    """

    def __init__(self, channels: int, side: int = 64, widths: Sequence[int] = WIDTHS, dimension: int = 128) -> None:
        super().__init__(channels, side, widths, 1, dimension)
        self.weight = nn.Parameter(torch.full((dimension,), -0.5))
        self.bias = nn.Parameter(torch.tensor(5.0))

    def forward(self, image: Tensor) -> Tensor:
        """Maps images [B, C, H, W] in [-1, 1] to what is compared, [B, dimension] in (0, 1), fp32."""
        return self.features(image).sigmoid()

    def compare(self, x: Tensor, y: Tensor) -> Tensor:
        """Maps features [N, dimension] and [M, dimension] to logits [N, M] of "the same patient"."""
        return (x[:, None] - y[None]).abs() @ self.weight + self.bias
