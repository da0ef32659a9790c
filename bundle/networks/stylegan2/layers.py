# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Layers of the generator and the discriminator.

A convolution with modulated and demodulated weights, w''_oik = s_i w_oik / sqrt(sum_ik (s_i w_oik)^2 + eps), is
computed here by scaling the activations by s_i, convolving with the shared w, and dividing the output by the root: the
same function, without one set of weights per sample, and several times faster on a CPU.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "RESOLUTIONS",
    "EqualizedConv2d",
    "EqualizedLinear",
    "ModulatedConv2d",
    "channels_at",
    "check_resolution",
    "leaky",
]

RESOLUTIONS = (32, 64, 128, 256, 512)


def channels_at(resolution: int, channel_base: int, channel_max: int) -> int:
    """Returns the number of feature maps at ``resolution`` pixels, by StyleGAN2's rule min(base / resolution, max)."""
    return min(channel_base // resolution, channel_max)


def check_resolution(resolution: int) -> None:
    """Raises ValueError for a resolution that is not one of `RESOLUTIONS`."""
    if resolution not in RESOLUTIONS:
        nearest = min(RESOLUTIONS, key=lambda valid: abs(valid - resolution))
        raise ValueError(f"resolution {resolution} is not one of {RESOLUTIONS}: the nearest is {nearest}.")


def _fir_kernel() -> Tensor:
    """Returns StyleGAN2's separable [1, 3, 3, 1] low-pass filter with unit sum, [1, 1, 4, 4]."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = torch.outer(taps, taps)
    return (kernel / kernel.sum()).view(1, 1, 4, 4)


def leaky(x: Tensor) -> Tensor:
    """Applies a leaky ReLU of slope 0.2, scaled by sqrt(2) to preserve the variance of its input."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2.0)


def _filter(x: Tensor, kernel: Tensor, gain: float, padding: int) -> Tensor:
    """Filters each channel of x [B, C, H, W] with the kernel [1, 1, 4, 4] times ``gain``."""
    weight = (kernel * gain).to(x.dtype).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(x, weight, padding=padding, groups=x.shape[1])


class EqualizedLinear(nn.Module):
    """Linear layer whose weight is stored with unit variance and scaled at run time (equalised learning rate).

    Args:
        in_features: length of the input vectors.
        out_features: length of the output vectors.
        bias: initial value of the bias.
        lr_multiplier: learning rate of this layer relative to that of other layers.
    """

    def __init__(self, in_features: int, out_features: int, bias: float = 0.0, lr_multiplier: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), bias / lr_multiplier))
        self.weight_gain: float = lr_multiplier / math.sqrt(in_features)
        self.bias_gain: float = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [..., in_features] to [..., out_features]."""
        return F.linear(x, self.weight * self.weight_gain, self.bias * self.bias_gain)


class EqualizedConv2d(nn.Module):
    """Convolution with equalised learning rate, "same" padding, and an optional low-pass filter and stride of 2.

    Args:
        in_channels: number of input feature maps.
        out_channels: number of output feature maps.
        kernel_size: side of the kernel, odd.
        bias: whether to add a bias.
        down: whether to halve the resolution, after an antialiasing [1, 3, 3, 1] filter.
    """

    if TYPE_CHECKING:  # torch.jit.script does not read annotations of a class as strings
        kernel: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, bias: bool = True, down: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.weight_gain: float = 1.0 / math.sqrt(in_channels * kernel_size**2)
        self.padding: int = kernel_size // 2
        self.down: bool = down
        self.register_buffer("kernel", _fir_kernel(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [B, in_channels, H, W] to [B, out_channels, H, W], or to half of H and W where ``down``."""
        weight = self.weight * self.weight_gain
        if not self.down:
            return F.conv2d(x, weight, self.bias, padding=self.padding)
        if self.padding == 0:  # a 1 x 1 kernel commutes with subsampling, which is cheaper first
            # A stride in the filter would need fewer operations, but its backward pass on a CPU is many times slower.
            return F.conv2d(_filter(x, self.kernel, 1.0, padding=1)[:, :, ::2, ::2], weight, self.bias)
        return F.conv2d(_filter(x, self.kernel, 1.0, padding=2), weight, self.bias, stride=2)


class ModulatedConv2d(nn.Module):
    """Convolution whose weights are modulated by a style and demodulated (StyleGAN2, equations 1 and 3).

    Args:
        in_channels: number of input feature maps.
        out_channels: number of output feature maps.
        kernel_size: side of the kernel, odd.
        up: whether to double the resolution, by a transposed convolution and the [1, 3, 3, 1] filter.
        demodulate: whether to divide the output by its expected standard deviation.
    """

    if TYPE_CHECKING:  # torch.jit.script does not read annotations of a class as strings
        kernel: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, up: bool = False, demodulate: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.weight_gain: float = 1.0 / math.sqrt(in_channels * kernel_size**2)
        self.padding: int = kernel_size // 2
        self.up: bool = up
        self.demodulate: bool = demodulate
        self.register_buffer("kernel", _fir_kernel(), persistent=False)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Applies the modulated convolution.

        Args:
            x: activations [B, in_channels, H, W].
            style: scales s of the input feature maps, [B, in_channels].

        Returns:
            Activations [B, out_channels, H, W], or with twice H and W where ``up``.
        """
        weight = self.weight * self.weight_gain
        x = x * style.to(x.dtype).unsqueeze(-1).unsqueeze(-1)
        if self.up:
            x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
            x = _filter(x, self.kernel, 4.0, padding=1)
        else:
            x = F.conv2d(x, weight, padding=self.padding)
        if self.demodulate:
            # An elementwise sum, since autocast would compute a matrix product in bf16.
            style = style.to(weight.dtype)
            power = (style.square().unsqueeze(1) * weight.square().sum(dim=(2, 3))).sum(dim=2)
            x = x * (power + 1e-8).rsqrt().to(x.dtype).unsqueeze(-1).unsqueeze(-1)
        return x
