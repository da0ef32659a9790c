# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""k-SALSA: moves the centroid of a cluster until its image has the content and the local style of the cluster's images.

Source: Jeon et al., "k-SALSA: k-anonymous synthetic averaging of retinal images via local style alignment", ECCV 2022,
arXiv 2303.10824. As in the paper, the mean latent is the start of 100 steps of Adam (learning rate 0.1, falling as a
cosine), which make the image of the centroid like the cluster's images in two ways: in the deep features of a network
(content), and in the Gram matrices of 4 x 4 crops of a shallow feature map (local style), where each crop is compared
with that crop of an image which is most similar by the cosine. Differences:

- One latent w for all layers (W) instead of one per layer (W+), as the walk needs it (`TrainingClusters.centroids`),
  moved in standard deviations of W, and held there by a pull to W like that of the inversion. Without the pull, the
  centroids of a trial ended at a distance of 11 to 15 from W, where 1 is typical and guides know nothing.
- The cluster's images are their inversions, so that nothing but the latents enters a centroid.
- Each patient weighs the same in both losses, whatever the number of images.
- Both losses are in units of the mean difference between two of the cluster's images, so that their weights depend on
  no network's scale: at 1 each, the image of the centroid differs from the cluster's as much as these from each other.

The features are those of the ImageNet ResNet-18 inside the guide of realism, whose weights are shipped. The
discriminator has looked through it and the walk differentiates it, so it belongs to what makes images; neither gate nor
audit, nor any measure of realism, uses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.latent.prior import LatentPrior
from bundle.latent.reconstruction import descend, mapped_samples, reproduce, synthesise
from bundle.networks.realism import RealismJudge
from bundle.networks.stylegan2 import Generator
from bundle.options import OptionError, number_problems
from bundle.precision import full_fp32

__all__ = ["GRID", "KSalsa", "KSalsaSettings", "style_differences", "style_of_crops"]

#: Crops of a feature map along each side.
GRID = 4
# Images whose features are computed at once.
BATCH = 8


@dataclass(frozen=True)
class KSalsaSettings:
    """What the descent depends on.

    Attributes:
        steps: steps of Adam; 0 for the mean latent.
        learning_rate: Adam's first learning rate, in standard deviations of w; it falls to 0 as a cosine.
        style: weight of the local style; that of the content is 1.
        lambda_prior: weight of the distance from W.

    Raises:
        OptionError: a value is of the wrong type or below 0.
    """

    steps: int = 100
    learning_rate: float = 0.1
    style: float = 1.0
    lambda_prior: float = 0.02

    def __post_init__(self) -> None:
        least = {"steps": 0, "learning_rate": 0, "style": 0, "lambda_prior": 0}
        if problems := number_problems(self, least, whole=("steps",)):
            raise OptionError([f"k-SALSA's settings: {problem}" for problem in problems])


def style_of_crops(features: Tensor) -> Tensor:
    """Returns the Gram matrices of the crops of feature maps, which lie side by side as a grid.

    Args:
        features: [N, C, H, W], H and W at least `GRID`.

    Returns:
        [N, GRID * GRID, C * C]: F F^T / (h w) for the features F [C, h w] of each crop.
    """
    height, width = (side // GRID for side in features.shape[2:])
    crops = features.unfold(2, height, height)[:, :, :GRID].unfold(3, width, width)[:, :, :, :GRID]
    flat = crops.permute(0, 2, 3, 1, 4, 5).flatten(4).flatten(1, 2)
    return (flat @ flat.mT / (height * width)).flatten(2)


def style_differences(own: Tensor, others: Tensor) -> Tensor:
    """Returns the mean squared differences of an image's crops from the most similar crops of each of n other images.

    Args:
        own: `style_of_crops` of the image, [crops, D].
        others: those of the other images, [n, crops, D].

    Returns:
        [n].
    """
    with torch.no_grad():
        best = (F.normalize(own, dim=1) @ F.normalize(others, dim=2).mT).argmax(dim=2)
    matched = others.gather(1, best.unsqueeze(2).expand(-1, -1, others.shape[2]))
    return (matched - own).square().mean(dim=(1, 2))


class _Cluster:
    """Content and style of a cluster's images, with which the image of the centroid is compared.

    Args:
        content: averages of the deepest feature map of each of n images, [n, C].
        style: `style_of_crops` of their shallowest map, [n, crops, D].
        weights: weight of each image, [n], with a sum of 1.
    """

    def __init__(self, content: Tensor, style: Tensor, weights: Tensor) -> None:
        self.content, self.style, self.weights = content, style, weights
        within = [self._differences(*image) for image in zip(content, style, strict=True)]
        # An image does not differ from itself; clusters of identical images have a scale of 0.
        share = 1.0 - weights.square().sum()
        self.scales = [(weights @ torch.stack(own) / share).clamp_min(1e-12) for own in zip(*within, strict=True)]

    def loss(self, content: Tensor, style: Tensor, weight: float) -> Tensor:
        """Returns the loss of the centroid's image, from its content [C] and its style [crops, D]."""
        of_content, of_style = (
            difference / scale for difference, scale in zip(self._differences(content, style), self.scales, strict=True)
        )
        return of_content + weight * of_style

    def _differences(self, content: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the mean differences of an image from the cluster's, in content and in style."""
        cosine = F.cosine_similarity(self.content, content.unsqueeze(0))
        return self.weights @ (1.0 - cosine), self.weights @ style_differences(style, self.style)


class KSalsa:
    """Moves centroids by k-SALSA, in fp32; no network is changed.

    Args:
        generator: generator G.
        judge: guide of realism, whose ImageNet network gives the features.
        settings: steps and weights of the descent.
    """

    def __init__(self, generator: Generator, judge: RealismJudge, settings: KSalsaSettings) -> None:
        self.generator, self.judge, self.settings = generator, judge, settings
        self.device = next(generator.parameters()).device
        self.prior = LatentPrior(generator)
        samples = mapped_samples(generator, 0)
        self.mean, self.deviation = samples.mean(dim=0), samples.std(dim=0).clamp_min(1e-3)

    @full_fp32()
    def __call__(self, label: int, start: Tensor, members: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
        """Moves the centroids of clusters of one class.

        A cluster's result does not depend on the others but for the last bits, which depend on how many there are.

        Args:
            label: class of the clusters.
            start: centroids in W, [M, w_dim].
            members: latents w+ of each cluster's images, each [n, layers, w_dim].
            weights: weights of these images, each [n], with a sum of 1.

        Returns:
            Latents [M, w_dim] in W, on the CPU.
        """
        clusters = [self._cluster(*cluster) for cluster in zip(members, weights, strict=True)]
        labels = torch.full((len(start),), label, device=self.device)

        def loss(u: Tensor) -> Tensor:
            w = self.mean + self.deviation * u
            images = zip(clusters, *self._describe(reproduce(self.generator, w)), strict=True)
            differences = [cluster.loss(content, style, self.settings.style) for cluster, content, style in images]
            return torch.stack(differences) + self.settings.lambda_prior * self.prior(w.unsqueeze(1), labels)[:, 0]

        standardised = (start.to(self.device) - self.mean) / self.deviation
        moved = descend(loss, standardised, self.settings.steps, self.settings.learning_rate)
        return (self.mean + self.deviation * moved).cpu()

    def _describe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns content [B, C] and style [B, crops, D] of images [B, C, H, W], see `_Cluster`."""
        maps = self.judge.maps(images)
        return maps[-1].mean(dim=(2, 3)), style_of_crops(maps[0])

    @torch.no_grad()
    def _cluster(self, latents: Tensor, weights: Tensor) -> _Cluster:
        parts = [self._describe(part.to(self.device)) for part in synthesise(self.generator, latents).split(BATCH)]
        content, style = (torch.cat(values) for values in zip(*parts, strict=True))
        return _Cluster(content, style, weights.to(self.device))
