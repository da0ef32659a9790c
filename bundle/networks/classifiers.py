# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Classifiers of images: the guides, which the walk differentiates, and the gate's networks, which it never does.

Their architectures differ, so that images that deceive a guide do not necessarily deceive the gate.
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
    r"""Cosine classifier over identities with an additional class "nobody".

    With the feature f, the prototypes w_k of K identities, a scale s and a threshold c,

        l_k = log(exp(s cos(f, w_k)) + exp(s c) / K),    p = softmax(l):

    the additional class "nobody" has the logit s c, and its probability is distributed evenly over all identities
    (hence exp(s c) / K). For an image that resembles no patient, with cos(f, w_k) well below c for every k, p is
    therefore uniform, as the paper's identity term requires (Pennisi et al., MICCAI 2023, L_id), even if its small
    cosines differ. The cosine classifier is that of NormFace (Wang et al., ACM MM 2017).

    Args:
        in_features: length of a feature vector.
        num_classes: K, number of identities.

    Attributes:
        scale: learned scale s.
        nobody: learned threshold c, the cosine above which an identity is more likely than "nobody".
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
        """Maps features [B, in_features] to logits s cos(f, w_k), [B, K], of the identities without "nobody"."""
        return self.scale * self.cosine(features)

    def forward(self, features: Tensor) -> Tensor:
        """Maps features [B, in_features] to logits [B, K]."""
        floor = self.scale * self.nobody - math.log(self.weight.shape[0])
        return torch.logaddexp(self.scale * self.cosine(features), floor)


class Classifier(nn.Module):
    """Classifier of a trunk, which returns one feature vector, and a head, which is always computed in fp32."""

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
        """Maps images [B, C, H, W] to logits of the classes without "nobody", [B, num_classes] in fp32.

        Where "nobody" is likely, its share of every identity's probability hides which patients an image resembles more
        than others. These logits rank the patients even if the image resembles none of them closely.
        """
        return self.closed_set_of(self.features(image))

    def closed_set_of(self, features: Tensor) -> Tensor:
        """Maps features [B, features] to the logits of `closed_set`."""
        with torch.autocast(features.device.type, enabled=False):
            return self.head.closed_set(features) if isinstance(self.head, NobodyHead) else self.head(features)


@register_network
class Guide(Classifier):
    """ResNet-18 (He et al., CVPR 2016): phi_id and phi_class of the paper.

    The walk evaluates the guides hundreds of times per point, so they are narrow and the stem reduces the image by 4. A
    forward and backward pass in bf16 on one CPU core takes 1.2 ms at 64 px and 5.0 ms at 128 px; width 1 takes three
    times as long, and stems of higher resolution three to ten times.

    Args:
        channels: number of image channels, 1 or 3.
        num_classes: number of identities or diagnoses.
        identity: whether the head is a `NobodyHead` rather than a linear layer.
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

    Larger images are reduced to ``side`` pixels, and all are standardised to mean 0 and standard deviation 1. The gate
    is thereby nearly invariant to blur, noise, brightness and contrast, without having to learn it. 64 pixels suffice
    to identify patients; finer detail is what changes most easily in a copy.

    Args:
        channels: number of image channels, 1 or 3.
        num_classes: number of identities or diagnoses.
        identity: whether the head is a `NobodyHead` rather than a linear layer.
        side: side in pixels to which larger images are reduced.
        growth: number of channels that every layer adds.
        layers: number of layers in each dense block; the resolution is halved between two blocks.
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
