# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Judges of realism, one of the walk and another of the gate: how far an image is from the real images of its class."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bundle.networks.efficientnet import CHANNELS, EfficientNetStages
from bundle.networks.resnet import STAGES, ResNetStages
from bundle.networks.standardise import resized
from bundle.networks.weights import register_network

__all__ = ["RealismJudge"]


@dataclass(frozen=True)
class _Trunk:
    """ImageNet network whose feature maps at 1/4, 1/8 and 1/16 of the image's side are used, the first of them not.

    Attributes:
        build: function that returns the stages with random weights.
        channels: channels of the feature maps.
        side: side in pixels to which images are resized.
    """

    build: Callable[[], EfficientNetStages | ResNetStages]
    channels: tuple[int, ...]
    side: int


_TRUNKS = {
    "efficientnet_lite1": _Trunk(EfficientNetStages, CHANNELS, 192),
    "resnet18": _Trunk(lambda: ResNetStages(saved=True), STAGES, 128),
}
# Lower bound of a feature's standard deviation, as a share of the mean one.
FLOOR = 1e-3
# Images whose features are computed at once; more do not fit into a core's cache.
BLOCK = 8


@register_network
class RealismJudge(nn.Module):
    """Distance of images from the real images of a class, in the features of an ImageNet network.

    The features are modelled as in probabilistic principal component analysis (Tipping and Bishop, J. R. Stat. Soc. B
    61, 1999): a Gaussian within a few principal components and isotropic noise outside of them. The distance is the
    mean of two squared distances, that within the components and that from their subspace, each relative to its median
    over the training images. Images of a generator that has left its distribution lie far from the subspace.

    Of the real images, the network keeps their mean and principal components only, no image's own features.

    Args:
        num_classes: number of labels.
        components: number of principal components of each class.
        side: side in pixels to which images are resized for the ImageNet network; None for its usual one.
        trunk: ImageNet network, ``efficientnet_lite1`` or ``resnet18``; its weights are random until `load_imagenet` or
            a state dict is loaded.
    """

    if TYPE_CHECKING:
        mean: Tensor
        deviation: Tensor
        directions: Tensor
        variances: Tensor
        typical: Tensor

    def __init__(
        self, num_classes: int, components: int = 16, side: int | None = None, trunk: str = "efficientnet_lite1"
    ) -> None:
        super().__init__()
        kind = _TRUNKS[trunk]
        self.num_classes = num_classes
        self.side = kind.side if side is None else side
        self.arguments = {"num_classes": num_classes, "components": components, "side": self.side, "trunk": trunk}
        self.trunk = kind.build()
        # Mean and standard deviation of each channel.
        features = 2 * sum(kind.channels[1:])
        self.register_buffer("mean", torch.zeros(num_classes, features))
        self.register_buffer("deviation", torch.ones(features))
        self.register_buffer("directions", torch.zeros(num_classes, components, features))
        self.register_buffer("variances", torch.ones(num_classes, components))
        self.register_buffer("typical", torch.ones(num_classes, 2))

    def load_imagenet(self, file: str | os.PathLike[str] | None = None) -> None:
        """Loads the ImageNet weights, see the method of the same name of `EfficientNetStages` and `ResNetStages`."""
        self.trunk.load_imagenet(file)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Maps images [N, C, H, W] in [-1, 1] to features [N, F], in blocks and without gradient."""
        return torch.cat([self._features(block) for block in images.split(BLOCK)])

    def fit(self, features: Tensor, labels: Tensor) -> None:
        """Sets means, components and typical distances from real images.

        Args:
            features: features of the training images, [N, F].
            labels: their labels, [N]; every class must have more images than there are components.
        """
        deviation = features.std(dim=0)
        self.deviation.copy_(deviation.clamp_min(FLOOR * float(deviation.mean())))
        for label in range(len(self.mean)):
            own = features[labels == label] / self.deviation
            self.mean[label] = own.mean(dim=0)
            _, values, directions = torch.linalg.svd((own - self.mean[label]).double(), full_matrices=False)
            count = self.directions.shape[1]
            self.directions[label] = directions[:count].float()
            self.variances[label] = (values[:count].square() / len(own)).float()
            self.typical[label] = torch.stack(self._distances(own * self.deviation, label), dim=1).median(dim=0).values

    def standardised(self, features: Tensor) -> Tensor:
        """Divides features [N, F] by their standard deviation over the training images."""
        return features / self.deviation

    def distance(self, features: Tensor, label: int) -> Tensor:
        """Returns the distance [N] of features [N, F] from the real images of a class; 1 is typical of these."""
        return (torch.stack(self._distances(features, label), dim=1) / self.typical[label]).mean(dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [N, C, H, W] in [-1, 1] to log(1 + d), [N, classes], of their distances d from each class.

        Unlike `features`, it passes gradients to the images.
        """
        with torch.autocast(images.device.type, enabled=False):
            features = self._features(images.float())
            distances = [self.distance(features, label) for label in range(self.num_classes)]
        return torch.stack(distances, dim=1).log1p()

    def maps(self, images: Tensor) -> list[Tensor]:
        """Maps images [N, C, H, W] in [-1, 1], resized to ``side``, to the ImageNet network's three feature maps.

        Returns:
            [N, C, side/4, side/4] to [N, C, side/16, side/16]; gradients pass.
        """
        maps: list[Tensor] = self.trunk(resized(images, self.side))
        return maps

    def _features(self, images: Tensor) -> Tensor:
        maps = [x.float().flatten(2) for x in self.maps(images)[1:]]
        return torch.cat([part for x in maps for part in (x.mean(dim=2), x.std(dim=2))], dim=1)

    def _distances(self, features: Tensor, label: int) -> tuple[Tensor, Tensor]:
        """Returns squared distances [N], within the principal components and from their subspace."""
        centred = features / self.deviation - self.mean[label]
        within = centred @ self.directions[label].T
        outside = centred - within @ self.directions[label]
        return (within.square() / self.variances[label]).mean(dim=1), outside.square().mean(dim=1)
