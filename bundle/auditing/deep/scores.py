# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Scores of membership: how near the nearest of a generator's samples comes to each real image."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from bundle.figures import from_uint8, to_uint8
from bundle.metrics.features import FEATURES, squeezenet_features
from bundle.metrics.lpips import LPIPS_TRUNK, lpips_model, pairwise
from bundle.metrics.recognition import predict
from bundle.networks.sampling import fixed_latents, sample_images
from bundle.networks.stylegan2 import Generator
from bundle.steps import Tensors

__all__ = ["EMBEDDED", "SPACES", "Scorer", "smaller"]

#: Name of the space that has seen the training images of the audited generator, and no others.
EMBEDDED = "embedding"
#: Spaces in which distances are measured. The discriminator looks through none of them: a projected one has ResNet-18.
SPACES = {
    "features": f"{FEATURES} features",
    "lpips": LPIPS_TRUNK,
    "pixels": "pixels",
    EMBEDDED: "contrastive embedding",
}


def smaller(images: Tensor, resolution: int) -> Tensor:
    """Returns images [N, C, H, W] at a lower resolution, antialiased; smaller ones stay as they are."""
    if images.shape[-1] <= resolution:
        return images
    size = (resolution, resolution)
    return nn.functional.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)


class Scorer:
    """Measures how near generators come to some images.

    Args:
        pixels: images, uint8 [P, H, W] or [P, H, W, 3].
        embedding: network ``audit_embedding``.
        n_samples: number of samples of each generator; the latents are the same for all generators.
        seed: seed of the latents.
        squeezenet_file: file of the SqueezeNet 1.1 weights; None for those of torchvision.
        device: device of the computation.
    """

    def __init__(
        self,
        pixels: Tensor,
        embedding: nn.Module,
        n_samples: int,
        seed: int,
        squeezenet_file: str | os.PathLike[str] | None,
        device: str | torch.device,
    ) -> None:
        self.images = from_uint8(pixels)
        self.embedding = embedding
        self.n_samples, self.seed = n_samples, seed
        self.squeezenet_file, self.device = squeezenet_file, torch.device(device)

    def describe(self) -> Tensors:
        """Returns the images' points in the spaces that have any, which are the same for all generators."""
        return self._points(self.images)

    def score(self, generator: Generator, points: Tensors) -> Tensors:
        """Scores the images by samples of a generator.

        Args:
            generator: the generator; samples are reduced to the images' resolution and rounded to 8 bits.
            points: what `describe` returned.

        Returns:
            Negative distance [P] of each image to the nearest sample, for each of `SPACES`.
        """
        latents = fixed_latents(self.n_samples, generator.z_dim, generator.num_classes, self.seed)
        drawn = smaller(sample_images(generator, *latents), self.images.shape[-1])
        samples = from_uint8(torch.from_numpy(to_uint8(drawn)))
        theirs = self._points(samples)
        scores = {name: -torch.cdist(points[name], theirs[name]).amin(dim=1) for name in points}
        model = lpips_model(self.squeezenet_file)
        scores["lpips"] = -pairwise(self.images, samples, model, device=self.device).amin(dim=1)
        return scores

    def _points(self, images: Tensor) -> Tensors:
        return {
            "features": squeezenet_features(images, self.squeezenet_file, device=self.device),
            "pixels": images.flatten(1) / images[0].numel() ** 0.5,
            EMBEDDED: predict(self.embedding, images),
        }
