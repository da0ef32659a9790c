# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Classifier of diagnoses on a trunk that knows photographs, for signs that are small and images that are few."""

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
# The trunks divide the side by 16: of smaller images they would keep a point or four.
_SMALLEST = 64


@dataclass(frozen=True)
class _Trunk:
    """Part of one of torchvision's networks.

    Attributes:
        build: returns the whole network with random weights.
        parts: the part, as names of its children in their order.
        channels: of the feature map that it ends in.
        weights: torchvision's.
        option: name of the option that names a file of them.
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
    """One of `TRUNKS`, averaged over the image, dropout and a linear head; all of it is trained.

    Args:
        channels: of the images, 1 or 3; grey is repeated.
        num_classes: diagnoses.
        trunk: a key of `TRUNKS`; its weights are random until `load_imagenet` or a state dict fills them.
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
        """Fills the trunk with torchvision's ImageNet weights.

        Args:
            file: the weights as torchvision publishes them, whole or without what the trunk does not use; None lets
                torchvision download them.

        Raises:
            TrunkUnavailable: the weights are not to be had, or the file holds others.
        """
        state = imagenet_weights(self.kind.weights, file, self.kind.option)
        own = {key: value.float() for key, value in state.items() if key.split(".")[0] in self.kind.parts}
        try:
            self.trunk.load_state_dict(own, strict=True)
        except RuntimeError as error:
            raise unsuitable(self.kind.weights, file, self.kind.option) from error

    def features(self, image: Tensor) -> Tensor:
        """Maps images [B, C, H, H] in [-1, 1], enlarged to 64 px if smaller, to features [B, features] in fp32."""
        if image.shape[-1] < _SMALLEST:
            image = F.interpolate(image, (_SMALLEST, _SMALLEST), mode="bilinear")
        x = imagenet_normalised(image.expand(-1, 3, -1, -1)).contiguous(memory_format=torch.channels_last)
        features: Tensor = self.dropout(self.trunk(x).float().mean(dim=(2, 3)))
        return features
