# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Encoder of images: predicts the latents from which the generator synthesises an image that resembles them.

Sources: Richardson et al., "Encoding in Style: a StyleGAN Encoder for Image-to-Image Translation", CVPR 2021 (pSp: one
latent per layer, as the mean of W plus a prediction; coarse layers are predicted from feature maps of low resolution,
fine ones from those of high resolution); Tov et al., "Designing an Encoder for StyleGAN Image Manipulation", SIGGRAPH
2021 (e4e: one latent w and offsets from it).
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bundle.networks.stylegan2 import Generator
from bundle.networks.stylegan2.layers import check_resolution
from bundle.networks.weights import register_network

__all__ = ["Encoder", "new_encoder"]

# Sides in pixels of the feature maps that predict the fine, the medium and the coarse layers, and to which all are
# reduced before they are flattened.
SIDES = (16, 8, 4)
CELLS = 4
# Feature maps that a head looks at, groups of a normalisation, and the largest number of feature maps.
HEAD_CHANNELS, GROUPS, MOST_CHANNELS = 32, 8, 256


def _normalised(in_channels: int, out_channels: int, kernel_size: int, stride: int) -> nn.Sequential:
    """Convolution and group norm, by which an image's latents do not depend on the other images of its batch."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False),
        nn.GroupNorm(min(GROUPS, out_channels), out_channels),
    )


class _Halving(nn.Module):
    """Residual block (He et al., CVPR 2016) that halves the resolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv0 = _normalised(in_channels, out_channels, 3, 2)
        self.conv1 = _normalised(out_channels, out_channels, 3, 1)
        self.skip = _normalised(in_channels, out_channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv1(F.relu(self.conv0(x))) + self.skip(F.avg_pool2d(x, 2)))


class _Reader(nn.Module):
    """Reduces feature maps [B, in_channels, H, W] to a vector that keeps the place, [B, HEAD_CHANNELS * CELLS^2]."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(in_channels, HEAD_CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.adaptive_avg_pool2d(self.reduce(x), CELLS)).flatten(1)


@register_network
class Encoder(nn.Module):
    r"""Predicts one latent per synthesis layer, w_l = m + s (b(x) + d_l(x)) with d_0 = 0.

    m and s are mean and standard deviation of w over samples of the mapping network, b is common to all layers, and the
    offsets d_l move a layer out of W. Both are 0 before training.

    Args:
        resolution: side of the images, one of 32, 64, 128, 256, 512 pixels.
        channels: number of image channels, 1 or 3.
        layers: number of latents of an image, at least 4.
        w_dim: length of a latent.
        width: feature maps at half the resolution; doubled with each halving, up to 256.

    Attributes:
        mean: m, [w_dim].
        deviation: s, [w_dim].

    Raises:
        ValueError: the resolution is not one of those.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, resolution: int, channels: int, layers: int, w_dim: int, width: int = 32) -> None:
        super().__init__()
        check_resolution(resolution)
        self.arguments = {
            "resolution": resolution,
            "channels": channels,
            "layers": layers,
            "w_dim": w_dim,
            "width": width,
        }
        self.resolution, self.channels, self.layers, self.w_dim = resolution, channels, layers, w_dim
        count = int(math.log2(resolution // CELLS))
        widths = [min(width * 2**index, MOST_CHANNELS) for index in range(count)]
        self.stem = _normalised(channels, widths[0], 3, 2)
        self.blocks = nn.ModuleList(_Halving(*pair) for pair in pairwise(widths))
        self.readers = nn.ModuleList(_Reader(features) for features in widths[-len(SIDES) :])
        features = HEAD_CHANNELS * CELLS**2
        self.base = nn.Linear(features, w_dim)
        # Of the layers behind the first, a third each for the coarse, the medium and the fine feature maps.
        self.counts = [len(part) for part in torch.arange(layers - 1).tensor_split(len(SIDES))]
        self.offsets = nn.ModuleList(nn.Linear(features, number * w_dim) for number in self.counts)
        for head in (self.base, *self.offsets):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.register_buffer("mean", torch.zeros(w_dim))
        self.register_buffer("deviation", torch.ones(w_dim))

    def standardise(self, w: Tensor) -> None:
        """Sets mean and standard deviation of W from samples of the mapping network, [N, w_dim]."""
        self.mean.copy_(w.mean(dim=0))
        self.deviation.copy_(w.std(dim=0).clamp_min(1e-3))

    def forward(self, image: Tensor) -> Tensor:
        """Maps images [B, C, resolution, resolution] in [-1, 1] to latents w+, [B, layers, w_dim], in fp32.

        Raises:
            ValueError: the images have another size or number of channels.
        """
        shape = (self.channels, self.resolution, self.resolution)
        if image.ndim != 4 or image.shape[1:] != shape:
            raise ValueError(
                f"The encoder was trained on images [N, {', '.join(map(str, shape))}], not {list(image.shape)}. Read "
                f"them with the modality and the resolution of its JSON file."
            )
        x = F.relu(self.stem(image))
        maps = [x]
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        maps = maps[-len(SIDES) :]
        fine_to_coarse = [reader(features).float() for reader, features in zip(self.readers, maps, strict=True)]
        with torch.autocast(image.device.type, enabled=False):
            read = fine_to_coarse[::-1]
            base = self.base(read[0]).unsqueeze(1)
            offsets = [
                head(features).view(-1, number, self.w_dim)
                for head, features, number in zip(self.offsets, read, self.counts, strict=True)
            ]
            standardised = torch.cat([base, *(base + offset for offset in offsets)], dim=1)
            return self.mean + self.deviation * standardised


def new_encoder(generator: Generator, w: Tensor, width: int = 32) -> Encoder:
    """Builds an encoder for a generator that maps every image to the mean of W.

    Args:
        generator: generator, whose arguments determine the size of images and latents.
        w: samples of its mapping network, [N, w_dim].
        width: see `Encoder`.
    """
    arguments = generator.arguments
    encoder = Encoder(
        arguments["resolution"], arguments["image_channels"], generator.synthesis.num_ws, generator.w_dim, width
    )
    encoder.standardise(w)
    return encoder
