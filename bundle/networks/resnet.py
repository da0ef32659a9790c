# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""First stages of ResNet-18, the ImageNet network of the discriminator and of the guide of realism."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights

from bundle.networks.pretrained import fill_folded, imagenet_normalised, imagenet_weights, unsuitable

__all__ = ["STAGES", "ResNetStages"]

_WEIGHTS = ResNet18_Weights.IMAGENET1K_V1
_OPTION = "resnet18_file"  # option for a file of the weights
#: Channels of ResNet-18's first three stages, at 1/4, 1/8 and 1/16 of the image's side.
STAGES = (64, 128, 256)


class _FrozenConv(nn.Module):
    """Convolution with a bias, whose weights are not trained, and saved only if ``saved``."""

    if TYPE_CHECKING:
        weight: Tensor
        bias: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, saved: bool) -> None:
        super().__init__()
        weight = torch.empty(out_channels, in_channels, kernel_size, kernel_size)
        nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
        self.register_buffer("weight", weight, persistent=saved)
        self.register_buffer("bias", torch.zeros(out_channels), persistent=saved)
        self.stride = stride
        self.padding = kernel_size // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, stride=self.stride, padding=self.padding)

    def fill(self, state: dict[str, Tensor], conv: str, norm: str) -> None:
        """Loads a convolution and folds the batch norm that follows it into weight and bias."""
        fill_folded(self.weight, self.bias, state, conv, norm, epsilon=1e-5)


class _Residual(nn.Module):
    """Basic block of ResNet, with batch norms folded into the convolutions."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, saved: bool) -> None:
        super().__init__()
        self.conv1 = _FrozenConv(in_channels, out_channels, 3, stride, saved)
        self.conv2 = _FrozenConv(out_channels, out_channels, 3, 1, saved)
        self.downsample = None
        if in_channels != out_channels:
            self.downsample = _FrozenConv(in_channels, out_channels, 1, stride, saved)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.conv2(F.relu(self.conv1(x))) + shortcut)

    def fill(self, state: dict[str, Tensor], name: str) -> None:
        self.conv1.fill(state, f"{name}.conv1", f"{name}.bn1")
        self.conv2.fill(state, f"{name}.conv2", f"{name}.bn2")
        if self.downsample is not None:
            self.downsample.fill(state, f"{name}.downsample.0", f"{name}.downsample.1")


class ResNetStages(nn.Module):
    """Frozen first three stages of ResNet-18 (He et al., CVPR 2016), with random weights until `load_imagenet`.

    Args:
        saved: whether the weights are part of the state dict, for a network that is shipped; otherwise they are always
            loaded from torchvision.
    """

    def __init__(self, saved: bool = False) -> None:
        super().__init__()
        self.stem = _FrozenConv(3, STAGES[0], 7, 2, saved)
        widths = (STAGES[0], *STAGES)
        self.blocks = nn.ModuleList()
        for i in range(len(STAGES)):
            self.blocks.append(_Residual(widths[i], widths[i + 1], 1 if i == 0 else 2, saved))
            self.blocks.append(_Residual(widths[i + 1], widths[i + 1], 1, saved))

    def load_imagenet(self, file: str | os.PathLike[str] | None = None) -> None:
        """Loads torchvision's ImageNet weights.

        Args:
            file: path of torchvision's ``resnet18`` weights, complete or up to the third stage; None lets torchvision
                download them.

        Raises:
            TrunkUnavailable: the weights cannot be downloaded or read, or the file holds other weights.
        """
        state = imagenet_weights(_WEIGHTS, file, _OPTION)
        try:
            self.stem.fill(state, "conv1", "bn1")
            for index, block in enumerate(self.blocks):
                cast(_Residual, block).fill(state, f"layer{index // 2 + 1}.{index % 2}")
        except (KeyError, ValueError) as error:
            raise unsuitable(_WEIGHTS, file, _OPTION) from error

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps images [B, 1 or 3, H, W] in [-1, 1] to three feature maps, [B, 64, H/4, W/4] to [B, 256, H/16, W/16]."""
        x = imagenet_normalised(image.expand(-1, 3, -1, -1))
        x = F.max_pool2d(F.relu(self.stem(x.contiguous(memory_format=torch.channels_last))), 3, stride=2, padding=1)
        features = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index % 2:
                features.append(x)
        return features
