# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""A discriminator that looks at images through the features of a frozen classifier of photographs.

Source: Sauer et al., "Projected GANs Converge Faster", NeurIPS 2021. The features of several resolutions are mixed
across channels (1 x 1 convolutions) and across scales (3 x 3 convolutions, from deep to shallow) by fixed random
weights, and each resolution has a small discriminator of its own. Written from the paper. Other than there: ResNet-18
up to its third stage in place of an EfficientNet, minibatch standard deviation in place of batch norm in the
discriminators, and projection on the label.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torchvision.models import ResNet18_Weights

from bundle.networks.pretrained import imagenet_normalised, imagenet_weights, unsuitable
from bundle.networks.stylegan2 import minibatch_stddev
from bundle.networks.weights import register_network

__all__ = ["STAGES", "ProjectedDiscriminator", "ResNetStages"]

_WEIGHTS = ResNet18_Weights.IMAGENET1K_V1
_OPTION = "resnet18_file"  # that names a file of the weights
_SIDES = (64, 128, 256, 512)
#: Channels of ResNet-18's first three stages, at 1/4, 1/8 and 1/16 of the image's side.
STAGES = (64, 128, 256)


class _FrozenConv(nn.Module):
    """Convolution with a bias, whose weights are neither trained nor saved."""

    if TYPE_CHECKING:
        weight: Tensor
        bias: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        weight = torch.empty(out_channels, in_channels, kernel_size, kernel_size)
        nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", torch.zeros(out_channels), persistent=False)
        self.stride = stride
        self.padding = kernel_size // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, stride=self.stride, padding=self.padding)

    def fill(self, state: dict[str, Tensor], conv: str, norm: str) -> None:
        """Takes over a convolution and the batch norm behind it, as one."""
        gain = state[f"{norm}.weight"].double() / (state[f"{norm}.running_var"].double() + 1e-5).sqrt()
        weight = state[f"{conv}.weight"].double() * gain.view(-1, 1, 1, 1)
        if weight.shape != self.weight.shape:
            raise ValueError(f"{conv}.weight has shape {list(weight.shape)}, not {list(self.weight.shape)}.")
        self.weight.copy_(weight)
        self.bias.copy_(state[f"{norm}.bias"].double() - state[f"{norm}.running_mean"].double() * gain)


class _Residual(nn.Module):
    """ResNet's basic block without its batch norms, which are part of the convolutions."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _FrozenConv(in_channels, out_channels, 3, stride)
        self.conv2 = _FrozenConv(out_channels, out_channels, 3)
        self.downsample = _FrozenConv(in_channels, out_channels, 1, stride) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.conv2(F.relu(self.conv1(x))) + shortcut)

    def fill(self, state: dict[str, Tensor], name: str) -> None:
        self.conv1.fill(state, f"{name}.conv1", f"{name}.bn1")
        self.conv2.fill(state, f"{name}.conv2", f"{name}.bn2")
        if self.downsample is not None:
            self.downsample.fill(state, f"{name}.downsample.0", f"{name}.downsample.1")


class ResNetStages(nn.Module):
    """The first three stages of ResNet-18 (He et al., CVPR 2016), frozen; random until `load_imagenet` fills them.

    Its weights are not part of a state dict: they are torchvision's, and come from there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = _FrozenConv(3, STAGES[0], 7, stride=2)
        widths = (STAGES[0], *STAGES)
        self.blocks = nn.ModuleList()
        for i in range(len(STAGES)):
            self.blocks.append(_Residual(widths[i], widths[i + 1], stride=1 if i == 0 else 2))
            self.blocks.append(_Residual(widths[i + 1], widths[i + 1], stride=1))

    def load_imagenet(self, file: str | os.PathLike[str] | None = None) -> None:
        """Fills the stages with torchvision's ImageNet weights.

        Args:
            file: torchvision's ``resnet18`` weights, whole or without what lies behind the third stage; None lets
                torchvision download them.

        Raises:
            TrunkUnavailable: the weights are not to be had, or the file holds others.
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


class _Mixing(nn.Module):
    """Fixed random mixing of feature maps across channels and, from deep to shallow, across scales."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for index, width in enumerate(STAGES):
            self.register_buffer(f"across_channels_{index}", torch.randn(channels, width, 1, 1) / math.sqrt(width))
            fan_in = 9 * channels
            self.register_buffer(f"across_scales_{index}", torch.randn(channels, channels, 3, 3) / math.sqrt(fan_in))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps feature maps, shallow to deep, to as many with equal channels at the same resolutions."""
        mixed: list[Tensor] = []
        for index in reversed(range(len(features))):
            x = F.conv2d(features[index], self.get_buffer(f"across_channels_{index}"))
            if mixed:
                x = x + F.interpolate(mixed[0], scale_factor=2.0, mode="bilinear", align_corners=False)
            mixed.insert(0, F.conv2d(x, self.get_buffer(f"across_scales_{index}"), padding=1))
        return mixed


class _Head(nn.Module):
    """Discriminator of one feature map: convolutions with spectral norm, each half the size, down to 4 x 4 logits."""

    def __init__(self, in_channels: int, width: int, halvings: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for _ in range(halvings):
            layers += [spectral_norm(nn.Conv2d(channels, width, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
            channels = width
        self.body = nn.Sequential(*layers)
        self.last = spectral_norm(nn.Conv2d(channels + 1, width, 3, padding=1))
        self.out = spectral_norm(nn.Conv2d(width, 1, 1))
        self.embed = nn.Embedding(num_classes, width)
        nn.init.normal_(self.embed.weight, std=0.1)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Maps x [B, in_channels, H, W] and labels [B] to logits [B, 16]."""
        x = F.leaky_relu(self.last(minibatch_stddev(self.body(x))), 0.2)
        projection = (x * self.embed(label).to(x.dtype).unsqueeze(-1).unsqueeze(-1)).sum(dim=1, keepdim=True)
        return F.adaptive_avg_pool2d((self.out(x) + projection).float(), 4).flatten(1)


def _with_details(image: Tensor) -> Tensor:
    """Appends what a blur takes away, enlarged: images [B, C, H, W] to [B, 2 C, H, W]."""
    blurred = F.avg_pool2d(image, 3, stride=1, padding=1, count_include_pad=False)
    return torch.cat([image, 4.0 * (image - blurred)], dim=1)


@register_network
class ProjectedDiscriminator(nn.Module):
    """Discriminators of a frozen ResNet-18's features at three resolutions, and of the image itself.

    The features judge anatomy from the first thousands of images on, but hardly notice a slight blur or noise, so a
    fourth discriminator looks at the pixels and, apart, at their fine detail. All project on the label, none needs R1.
    The ResNet's weights are not part of the state dict: call `load_imagenet` before training.

    Args:
        image_channels: 1 (grey) or 3 (RGB).
        num_classes: number of labels.
        side: the ResNet sees images resized to so many pixels: 64, 128, 256 or 512. Equal for all resolutions of a
            generator, so that weights of one resolution go on with another.
        channels: of the mixed feature maps.
    """

    def __init__(self, image_channels: int = 1, num_classes: int = 2, side: int = 128, channels: int = 64) -> None:
        super().__init__()
        if side not in _SIDES:
            raise ValueError(f"side {side} is not one of {_SIDES}.")
        self.arguments = {
            "image_channels": image_channels,
            "num_classes": num_classes,
            "side": side,
            "channels": channels,
        }
        self.side = side
        self.trunk = ResNetStages()
        self.mixing = _Mixing(channels)
        self.heads = nn.ModuleList(
            _Head(channels, 2 * channels, int(math.log2(side // scale // 4)), num_classes) for scale in (4, 8, 16)
        )
        self.pixels = _Head(2 * image_channels, 2 * channels, 4, num_classes)

    def load_imagenet(self, file: str | os.PathLike[str] | None = None) -> None:
        """See `ResNetStages.load_imagenet`."""
        self.trunk.load_imagenet(file)

    def frozen_features(self, image: Tensor) -> list[Tensor]:
        """Maps images [B, C, H, W] in [-1, 1], resized to ``side``, to the feature maps of `ResNetStages`."""
        if image.shape[-1] != self.side:
            smaller = image.shape[-1] > self.side
            size = (self.side, self.side)
            image = F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=smaller)
        maps: list[Tensor] = self.trunk(image)
        return maps

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        """Judges images.

        Args:
            image: [B, C, H, W] in [-1, 1], square.
            label: [B], int64.

        Returns:
            Logits [B, 64], 16 of each of the three resolutions of the features and 16 of the pixels, fp32: positive
            means real.
        """
        features = self.mixing(self.frozen_features(image))
        logits = [head(x, label) for head, x in zip(self.heads, features, strict=True)]
        return torch.cat([*logits, self.pixels(_with_details(image), label)], dim=1)
