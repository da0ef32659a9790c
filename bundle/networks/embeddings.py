# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The audit's networks: an embedding in which copies of an image are close together, and a verifier of pairs.

Neither the walk nor the gate uses them. Their plain convolutional architecture differs from those of the guides and the
gate, and each is trained with its own seed and loss.
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
#: Number of images that are compared with a gallery at a time.
ROWS = 64


class _PlainTrunk(nn.Module):
    """Blocks of two 3 x 3 convolutions with batch norm (Simonyan and Zisserman, ICLR 2015); each halves the resolution.

    Images are first resized to ``side`` pixels and standardised.
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
        """Maps two sets of outputs of `forward`, [N, dimension] and [M, dimension], to their similarities [N, M]."""
        raise NotImplementedError

    @torch.no_grad()
    def nearest(self, x: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
        """Finds the most similar image of a gallery for each image.

        Args:
            x: outputs of `forward` for the images, [N, dimension].
            gallery: outputs of `forward` for the images of the gallery, [M, dimension], M >= 1.

        Returns:
            Similarity [N] of the most similar image, float32, and its index [N] in the gallery, int64.
        """
        # Filled in place: small tensors allocated between large temporary blocks would prevent reuse of their memory.
        similarity, index = torch.empty(len(x)), torch.empty(len(x), dtype=torch.int64)
        for number, block in enumerate(self.similarity(x, gallery)):
            rows = slice(number * ROWS, (number + 1) * ROWS)
            similarity[rows], index[rows] = block.max(dim=1)
        return similarity, index

    def similarity(self, x: Tensor, gallery: Tensor) -> Iterator[Tensor]:
        """Yields `compare` of x [N, dimension] and a gallery [M, dimension] in blocks of `ROWS` rows, on the CPU."""
        device = self.projection.weight.device
        gallery = gallery.to(device)
        for block in x.split(ROWS):
            with torch.no_grad():
                compared = self.compare(block.to(device), gallery)
            yield compared.cpu()


@register_network
class ContrastiveEmbedding(_PlainTrunk):
    """Embedding f that maps an image and its altered copies to nearly the same point on the unit sphere.

    The correlation of two images is the scalar product of their points (Dar et al., arXiv 2402.01054).

    Args:
        channels: number of image channels, 1 or 3.
        side: side in pixels to which every image is resized.
        widths: number of channels of each block.
        dimension: length of the embedding vector.
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
    r"""Siamese network that predicts whether two images show the same patient.

    With features g and the logistic function s, the logit is ``b + sum_k v_k |s(g_k(x)) - s(g_k(y))|``: the network of
    Packhäuser et al. (Scientific Reports 2022), "Deep learning-based patient re-identification is able to exploit the
    biometric nature of medical chest X-ray data", with a smaller trunk.

    Args:
        channels: number of image channels, 1 or 3.
        side: side in pixels to which every image is resized.
        widths: number of channels of each block.
        dimension: number of features.
    """

    def __init__(self, channels: int, side: int = 64, widths: Sequence[int] = WIDTHS, dimension: int = 128) -> None:
        super().__init__(channels, side, widths, 1, dimension)
        self.weight = nn.Parameter(torch.full((dimension,), -0.5))
        self.bias = nn.Parameter(torch.tensor(5.0))

    def forward(self, image: Tensor) -> Tensor:
        """Maps images [B, C, H, W] in [-1, 1] to the features s(g), [B, dimension] in (0, 1), in fp32."""
        return self.features(image).sigmoid()

    def compare(self, x: Tensor, y: Tensor) -> Tensor:
        """Maps features [N, dimension] and [M, dimension] to the logits [N, M] that pairs show the same patient."""
        return (x[:, None] - y[None]).abs() @ self.weight + self.bias
