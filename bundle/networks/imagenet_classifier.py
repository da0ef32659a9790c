# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Diagnostic classifier with a trunk pretrained on ImageNet, for small signs and few labelled images."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, SqueezeNet1_1_Weights, WeightsEnum, resnet18, squeezenet1_1

from bundle.networks.classifiers import Classifier
from bundle.networks.pretrained import imagenet_normalised, imagenet_weights, unsuitable
from bundle.networks.weights import register_network

__all__ = ["TRUNKS", "ImageNetClassifier"]

_DROPOUT = 0.5
# Smallest side of an image, in pixels: the trunks reduce it by 16, which would leave too few positions.
_SMALLEST = 64


@dataclass(frozen=True)
class _Trunk:
    """First part of a network of torchvision.

    Attributes:
        build: function that returns the complete network with random weights.
        parts: names of the network's children that form the trunk, in order.
        channels: number of channels of the trunk's output.
        weights: torchvision's pretrained weights.
        option: name of the option for a file of these weights.
    """

    build: Callable[[], nn.Module]
    parts: tuple[str, ...]
    channels: int
    weights: WeightsEnum
    option: str


#: Trunks by name: ResNet-18 (He et al., CVPR 2016) up to its third stage, SqueezeNet 1.1 (Iandola et al., arXiv
#: 1602.07360).
TRUNKS = {
    "resnet18": _Trunk(
        resnet18,
        ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3"),
        256,
        ResNet18_Weights.IMAGENET1K_V1,
        "resnet18_file",
    ),
    "squeezenet1_1": _Trunk(squeezenet1_1, ("features",), 512, SqueezeNet1_1_Weights.IMAGENET1K_V1, "squeezenet_file"),
}


@register_network
class ImageNetClassifier(Classifier):
    """One of `TRUNKS`, global average pooling, dropout and a linear head; all layers are trained.

    Args:
        channels: number of image channels, 1 or 3; a single channel is repeated.
        num_classes: number of diagnoses.
        trunk: a key of `TRUNKS`; its weights are random until `load_imagenet` or a state dict is loaded.
    """

    def __init__(self, channels: int, num_classes: int, trunk: str) -> None:
        kind = TRUNKS[trunk]
        children = dict(kind.build().named_children())
        network = nn.Sequential(OrderedDict((part, children[part]) for part in kind.parts))
        super().__init__(network, kind.channels, num_classes, identity=False)
        self.dropout = nn.Dropout(_DROPOUT)
        self.kind = kind
        self.arguments = {"channels": channels, "num_classes": num_classes, "trunk": trunk}

    def load_imagenet(self, file: str | os.PathLike[str] | None = None) -> None:
        """Loads torchvision's ImageNet weights into the trunk.

        Args:
            file: path of torchvision's weights, of the complete network or of the trunk; None lets torchvision download
                them.

        Raises:
            TrunkUnavailable: the weights cannot be downloaded or read, or the file holds other weights.
        """
        state = imagenet_weights(self.kind.weights, file, self.kind.option)
        own = {key: value.float() for key, value in state.items() if key.split(".")[0] in self.kind.parts}
        try:
            self.trunk.load_state_dict(own, strict=True)
        except RuntimeError as error:
            raise unsuitable(self.kind.weights, file, self.kind.option) from error

    def features(self, image: Tensor) -> Tensor:
        """Maps images [B, C, H, H] in [-1, 1], resized to 64 px if smaller, to features [B, features] in fp32."""
        if image.shape[-1] < _SMALLEST:
            image = F.interpolate(image, (_SMALLEST, _SMALLEST), mode="bilinear")
        x = imagenet_normalised(image.expand(-1, 3, -1, -1)).contiguous(memory_format=torch.channels_last)
        features: Tensor = self.dropout(self.trunk(x).float().mean(dim=(2, 3)))
        return features
