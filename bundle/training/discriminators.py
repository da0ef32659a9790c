# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Choice of the discriminator that a GAN is trained with."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from bundle.networks.pretrained import TrunkUnavailable
from bundle.networks.projected import ProjectedDiscriminator
from bundle.networks.stylegan2 import Discriminator
from bundle.networks.weights import WeightsError, load_weights
from bundle.training.init_from import discriminator_beside

__all__ = ["DISCRIMINATORS", "new_discriminator"]

logger = logging.getLogger(__name__)

#: Class of each discriminator, by the value of the option ``discriminator``; "auto" prefers the first.
DISCRIMINATORS = {"projected": ProjectedDiscriminator, "residual": Discriminator}


def new_discriminator(
    kind: str,
    resolution: int,
    image_channels: int,
    num_classes: int,
    resnet18_file: str | os.PathLike[str] | None = None,
    init_from: str | os.PathLike[str] | None = None,
) -> Discriminator | ProjectedDiscriminator:
    """Builds a discriminator with random weights; the frozen trunk of a projected one has ImageNet weights.

    Args:
        kind: "projected", "residual" or "auto". "auto" takes the kind of the weights that ``init_from`` names,
            otherwise a projected one, or, if its ImageNet weights are unavailable, a residual one with a warning.
        resolution: side of the images in pixels.
        image_channels: 1 (grey) or 3 (RGB).
        num_classes: number of labels.
        resnet18_file: torchvision's ``resnet18`` weights; None lets torchvision download them.
        init_from: ``generator.pt`` from which the training will start.

    Raises:
        TrunkUnavailable: a projected discriminator is required, and its ImageNet weights are unavailable.
        WeightsError: there is no discriminator beside ``init_from``.
    """
    fallback = kind == "auto" and init_from is None and resnet18_file is None
    if kind == "auto":
        kind = "projected" if init_from is None else _kind_of(discriminator_beside(Path(init_from)))
    if kind == "projected":
        projected = ProjectedDiscriminator(image_channels, num_classes)
        try:
            projected.load_imagenet(resnet18_file)
            return projected
        except TrunkUnavailable as error:
            if not fallback:
                raise
            logger.warning(
                "Training with the residual discriminator, which needs several times as many images as the projected "
                "one: %s To train with the residual one on purpose, give --discriminator residual.",
                error,
            )
    return Discriminator(resolution, image_channels, num_classes)


def _kind_of(path: Path) -> str:
    network = load_weights(path)[1]["network"]
    for kind, network_class in DISCRIMINATORS.items():
        if network_class.__name__ == network:
            return kind
    raise WeightsError(f"{path} holds a {network}, which is no discriminator. Copy the trained set anew.")
