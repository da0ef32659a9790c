# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The StyleGAN2 discriminator: residual blocks from the image to a logit, with projection on the label."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bundle.networks.stylegan2.layers import EqualizedConv2d, EqualizedLinear, channels_at, check_resolution, leaky
from bundle.networks.weights import register_network

__all__ = ["Discriminator", "DiscriminatorBlock", "minibatch_stddev"]


def minibatch_stddev(x: Tensor, group_size: int = 4) -> Tensor:
    """Appends one feature map: the standard deviation over groups of the batch, averaged over features and pixels.

    Source: Karras et al., ICLR 2018, section 3.

    Args:
        x: feature maps [B, C, H, W].
        group_size: largest number of samples per group; the largest divisor of B up to it is used.

    Returns:
        Feature maps [B, C + 1, H, W].
    """
    batch = x.shape[0]
    size = max(divisor for divisor in range(1, min(group_size, batch) + 1) if batch % divisor == 0)
    # The members of a group are B / size apart, so that groups of a batch sorted by class still mix the classes.
    grouped = x.to(torch.promote_types(x.dtype, torch.float32)).reshape(size, batch // size, *x.shape[1:])
    deviation = (grouped.var(dim=0, correction=0) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    feature = deviation.repeat(size).view(batch, 1, 1, 1).expand(-1, 1, *x.shape[2:])
    return torch.cat([x, feature.to(x.dtype)], dim=1)


class DiscriminatorBlock(nn.Module):
    """Residual block that halves the resolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv0 = EqualizedConv2d(in_channels, in_channels, 3)
        self.conv1 = EqualizedConv2d(in_channels, out_channels, 3, down=True)
        self.skip = EqualizedConv2d(in_channels, out_channels, 1, bias=False, down=True)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [B, in_channels, H, W] to [B, out_channels, H / 2, W / 2]."""
        return (leaky(self.conv1(leaky(self.conv0(x)))) + self.skip(x)) * math.sqrt(0.5)


@register_network
class Discriminator(nn.Module):
    """Residual discriminator with minibatch standard deviation and projection on the label.

    Args:
        resolution: side of the images, one of 32, 64, 128, 256, 512 pixels.
        image_channels: 1 (grey) or 3 (RGB).
        num_classes: number of labels.
        channel_base: see `channels_at`.
        channel_max: see `channels_at`.

    Raises:
        ValueError: the resolution is not one of those.
    """

    def __init__(
        self,
        resolution: int,
        image_channels: int = 1,
        num_classes: int = 2,
        channel_base: int = 2048,
        channel_max: int = 128,
    ) -> None:
        super().__init__()
        check_resolution(resolution)
        self.arguments = {
            "resolution": resolution,
            "image_channels": image_channels,
            "num_classes": num_classes,
            "channel_base": channel_base,
            "channel_max": channel_max,
        }
        sides = [2**i for i in range(int(math.log2(resolution)), 1, -1)]
        widths = [channels_at(side, channel_base, channel_max) for side in sides]
        self.from_image = EqualizedConv2d(image_channels, widths[0], 1)
        self.blocks = nn.ModuleDict(
            {str(sides[i]): DiscriminatorBlock(widths[i], widths[i + 1]) for i in range(len(sides) - 1)}
        )
        self.conv = EqualizedConv2d(widths[-1] + 1, widths[-1], 3)
        self.fc = EqualizedLinear(widths[-1] * 16, widths[-1])
        self.out = EqualizedLinear(widths[-1], 1)
        self.embed = nn.Embedding(num_classes, widths[-1])
        nn.init.normal_(self.embed.weight)

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        """Computes logits of whether images are real.

        Args:
            image: images [B, C, H, W] in [-1, 1].
            label: labels [B], int64.

        Returns:
            Logits [B], positive for real.
        """
        x = leaky(self.from_image(image))
        for block in self.blocks.values():
            x = block(x)
        x = leaky(self.conv(minibatch_stddev(x)))
        features = leaky(self.fc(x.flatten(1))).to(self.embed.weight.dtype)
        projection = (self.embed(label) * features).sum(dim=1) / math.sqrt(features.shape[1])
        return self.out(features).to(projection.dtype).squeeze(1) + projection
