# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Classifiers of real images: the guides, which the walk differentiates, and the gate's networks, which it never does.

The two kinds differ in architecture so that what fools one need not fool the other.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.nets import DenseNet, ResNet
from monai.networks.nets.resnet import ResNetBlock
from torch import Tensor, nn

from bundle.networks.standardise import resized, standardised
from bundle.networks.weights import register_network

__all__ = ["Classifier", "GateClassifier", "Guide", "NobodyHead"]


class NobodyHead(nn.Module):
    r"""Cosine classifier over identities that can say "nobody".

    With f the feature, w_k the prototype of identity k and K identities,

        l_k = log(exp(s cos(f, w_k)) + exp(s c) / K),    p = softmax(l):

    an extra class "nobody" competes with the logit s c, and its probability is shared out evenly among all identities
    (K times exp(s c) / K). An image that resembles nobody, cos(f, w_k) well below c for every k, so gets the uniform p
    that the paper's identity term asks for (Pennisi et al., MICCAI 2023, L_id), whatever differences are left between
    small cosines. The cosine is that of NormFace (Wang et al., ACM MM 2017).

    Args:
        in_features: length of a feature.
        num_classes: K.

    Attributes:
        scale: s, learned.
        nobody: c, learned: the cosine from which on an image is more likely somebody.
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, in_features))
        nn.init.normal_(self.weight)
        self.scale = nn.Parameter(torch.tensor(16.0))
        self.nobody = nn.Parameter(torch.tensor(0.5))

    def cosine(self, features: Tensor) -> Tensor:
        """Maps features [B, in_features] to their cosines with every prototype, [B, K]."""
        return F.normalize(features) @ F.normalize(self.weight).T

    def closed_set(self, features: Tensor) -> Tensor:
        """Maps features [B, in_features] to logits s cos(f, w_k), [B, K]: who it is if it must be somebody."""
        return self.scale * self.cosine(features)

    def forward(self, features: Tensor) -> Tensor:
        """Maps features [B, in_features] to logits [B, K]."""
        floor = self.scale * self.nobody - math.log(self.weight.shape[0])
        return torch.logaddexp(self.scale * self.cosine(features), floor)


class Classifier(nn.Module):
    """Trunk, which ends in one feature vector, and head; the head is always computed in fp32."""

    arguments: dict[str, Any]

    def __init__(self, trunk: nn.Module, features: int, num_classes: int, identity: bool) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = NobodyHead(features, num_classes) if identity else nn.Linear(features, num_classes)
        self.num_classes = num_classes

    def features(self, image: Tensor) -> Tensor:
        """Maps images [B, C, H, W] in [-1, 1] to penultimate features [B, features] in fp32."""
        return self.trunk(image).float()

    def forward(self, image: Tensor) -> Tensor:
        """Maps images [B, C, H, W] in [-1, 1] to logits [B, num_classes] in fp32."""
        features = self.features(image)
        with torch.autocast(image.device.type, enabled=False):
            return self.head(features)

    def closed_set(self, image: Tensor) -> Tensor:
        """Maps images to logits of the classes alone, [B, num_classes] in fp32: nobody is no answer here.

        Once nobody is likely, his share of every identity's probability hides which patients an image is still nearer
        to than to others. These logits say so, however far it is from all of them.
        """
        return self.closed_set_of(self.features(image))

    def closed_set_of(self, features: Tensor) -> Tensor:
        """Maps features [B, features] to the logits of `closed_set`."""
        with torch.autocast(features.device.type, enabled=False):
            return self.head.closed_set(features) if isinstance(self.head, NobodyHead) else self.head(features)


@register_network
class Guide(Classifier):
    """ResNet-18 (He et al., CVPR 2016): phi_id and phi_class of the paper.

    The walk pays for the guides hundreds of times per point, so they are narrow and the stem halves the image twice.
    Forward and backward to the image, bf16 on one CPU core: 1.2 ms at 64 px and 5.0 ms at 128 px; at width 1 three
    times as much, and stems that keep more pixels three to ten times.

    Args:
        channels: of the images, 1 or 3.
        num_classes: identities or diagnoses.
        identity: takes `NobodyHead` in place of a linear head.
        width: factor on the number of channels of every layer; 1 is the published network.
    """

    def __init__(self, channels: int, num_classes: int, identity: bool = False, width: float = 0.5) -> None:
        trunk = ResNet(
            block=ResNetBlock,
            layers=[2, 2, 2, 2],
            block_inplanes=[64, 128, 256, 512],
            spatial_dims=2,
            n_input_channels=channels,
            conv1_t_size=7,
            conv1_t_stride=2,
            widen_factor=width,
            feed_forward=False,
            bias_downsample=False,
        )
        super().__init__(trunk, int(512 * width), num_classes, identity)
        self.arguments = {"channels": channels, "num_classes": num_classes, "identity": identity, "width": width}


@register_network
class GateClassifier(Classifier):
    """Small DenseNet (Huang et al., CVPR 2017): the gate's networks.

    Every image is reduced to ``side`` pixels, where it is larger, and brought to mean 0 and standard deviation 1: a
    copy that is only blurred, noisy, darker, brighter or paler is nearly the same image to the gate, without its
    training having to show it so. Who somebody is shows at 64 pixels; finer detail is what changes most easily.

    Args:
        channels: of the images, 1 or 3.
        num_classes: identities or diagnoses.
        identity: takes `NobodyHead` in place of a linear head.
        side: see above.
        growth: channels that every layer adds.
        layers: number of layers in each of the dense blocks; the image is halved between two blocks.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        identity: bool = False,
        side: int = 64,
        growth: int = 32,
        layers: tuple[int, ...] = (3, 4, 4),
    ) -> None:
        network = DenseNet(
            spatial_dims=2,
            in_channels=channels,
            out_channels=1,
            init_features=2 * growth,
            growth_rate=growth,
            block_config=tuple(layers),
        )
        features = int(network.class_layers[-1].weight.shape[1])  # type: ignore[index]
        network.class_layers[-1] = nn.Identity()
        super().__init__(network, features, num_classes, identity)
        self.side = side
        self.arguments = {
            "channels": channels,
            "num_classes": num_classes,
            "identity": identity,
            "side": side,
            "growth": growth,
            "layers": list(layers),
        }

    def features(self, image: Tensor) -> Tensor:
        """Maps images [B, C, H, W] in [-1, 1] to penultimate features [B, features] in fp32."""
        if max(image.shape[-2:]) > self.side:
            image = resized(image, self.side)
        return super().features(standardised(image))
