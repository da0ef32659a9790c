# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Finds the latents of real images: from the encoder's prediction, by gradient descent on one latent per layer.

Sources: Abdal et al., "Image2StyleGAN", ICCV 2019 (optimisation of one latent per layer, W+); Zhu et al., "Generative
Visual Manipulation on the Natural Image Manifold", ECCV 2016 (a predicted latent as the start); Zhu et al., "Improved
StyleGAN Embedding: Where are the Good Latents?", arXiv 2012.09036 (P_N+: every layer's latent is pulled to the
distribution of W).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from bundle.latent.prior import LatentPrior
from bundle.latent.reconstruction import descend, image_errors, reproduce
from bundle.metrics.lpips import embed, lpips_model
from bundle.networks.encoder import Encoder
from bundle.networks.stylegan2 import Generator
from bundle.precision import full_fp32

__all__ = ["InversionError", "InversionSettings", "Inverter"]


class InversionError(ValueError):
    """Images, networks or files that an inversion cannot use; the message names the remedy."""


@dataclass(frozen=True)
class InversionSettings:
    """What the descent depends on.

    Attributes:
        steps: steps of Adam; 0 for the encoder's prediction.
        learning_rate: Adam's first learning rate, in standard deviations of w; it falls to 0 as a cosine.
        lambda_prior: weight of the distance from W.
        seed: random seed of the samples that describe W.
    """

    steps: int = 100
    learning_rate: float = 0.05
    lambda_prior: float = 0.02
    seed: int = 0


class Inverter:
    """Inverts images of one size with a generator and its encoder; neither is changed.

    The descent minimises, for every image x with label c,

        LPIPS(G(w), x) + |G(w) - x|^2 / pixels + lambda_prior mean_l d_c(w_l),

    where d_c is the squared distance of a latent from the distribution of W of that class (`LatentPrior`). d_c is a
    square of whitened latents, so its mean over the layers is the distance of their mean plus their variance: the one
    term pulls the layers towards each other, as L_d-reg of Tov et al. (SIGGRAPH 2021) does, and all of them to where W
    is dense.

    Args:
        generator: generator G.
        encoder: its encoder.
        settings: steps and weights of the descent.
        squeezenet_file: file of the SqueezeNet 1.1 weights; None for those of torchvision.

    Raises:
        InversionError: the encoder is of another generator.
        TrunkUnavailable: the SqueezeNet weights are not available.
    """

    def __init__(
        self,
        generator: Generator,
        encoder: Encoder,
        settings: InversionSettings,
        squeezenet_file: str | os.PathLike[str] | None = None,
    ) -> None:
        arguments = generator.arguments
        wanted = (arguments["resolution"], arguments["image_channels"], generator.synthesis.num_ws, generator.w_dim)
        found = (encoder.resolution, encoder.channels, encoder.layers, encoder.w_dim)
        if wanted != found:
            raise InversionError(
                f"The encoder is for images and latents (side, channels, layers, length) of {found}, the generator of "
                f"{wanted}. Train an encoder for this generator with configs/train_encoder.json."
            )
        self.device = next(generator.parameters()).device
        self.generator = generator.to(memory_format=torch.channels_last)
        self.encoder = encoder.to(self.device)
        self.settings = settings
        self.prior = LatentPrior(generator, settings.seed)
        self.model = lpips_model(squeezenet_file).to(self.device)

    def __call__(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Inverts images from the encoder's prediction.

        Args:
            images: images [N, C, H, W] in [-1, 1], all of which are descended at once.
            labels: class of each image, [N].

        Returns:
            See `descend`.

        Raises:
            InversionError: see `encode`.
        """
        return self.descend(images, labels, self.encode(images))

    @torch.no_grad()
    @full_fp32()
    def encode(self, images: Tensor) -> Tensor:
        """Maps images [N, C, H, W] in [-1, 1] to the encoder's latents [N, layers, w_dim].

        Raises:
            InversionError: the images have another size or another number of channels than the generator's.
        """
        try:
            latents: Tensor = self.encoder(images.to(self.device))
        except ValueError as error:
            raise InversionError(str(error)) from error
        return latents

    def mean_start(self, n: int) -> Tensor:
        """Returns the mean of W for every layer of n images, [n, layers, w_dim]: the start without an encoder."""
        return self.encoder.mean.expand(n, self.encoder.layers, -1).clone()

    @full_fp32()
    def descend(self, images: Tensor, labels: Tensor, start: Tensor) -> dict[str, Tensor]:
        """Improves latents of images by Adam, in fp32.

        An image's result does not depend on the others of its batch but for the last bits, which are those of matrix
        products of another size.

        Args:
            images: images [N, C, H, W] in [-1, 1].
            labels: class of each image, [N].
            start: latents [N, layers, w_dim].

        Returns:
            On the CPU: ``w`` [N, layers, w_dim], ``lpips`` [N], and ``pixels`` [N], the root mean squared error.
        """
        goal, label = images.to(self.device, torch.float32), labels.to(self.device)
        mean, deviation = self.encoder.mean, self.encoder.deviation
        with torch.no_grad():
            perceived = embed(goal, self.model)

        def loss(u: Tensor) -> Tensor:
            w = mean + deviation * u
            distance, squared = image_errors(reproduce(self.generator, w), goal, perceived, self.model)
            return distance + squared + self.settings.lambda_prior * self.prior(w, label).mean(dim=1)

        standardised = (start.to(self.device) - mean) / deviation
        w = mean + deviation * descend(loss, standardised, self.settings.steps, self.settings.learning_rate)
        with torch.no_grad():
            distance, squared = image_errors(self.generator.synthesis(w), goal, perceived, self.model)
        found = {"w": w, "lpips": distance, "pixels": squared.sqrt()}
        return {name: value.detach().cpu() for name, value in found.items()}
