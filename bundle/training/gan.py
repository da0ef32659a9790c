# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Settings of a GAN's training, and its trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from bundle.data import Modality
from bundle.networks.projected import ProjectedDiscriminator
from bundle.networks.stylegan2 import Discriminator, Generator
from bundle.training.augment import AdaptiveAugment
from bundle.training.stylegan2_trainer import StyleGAN2Trainer, balanced_loader

__all__ = ["GanSettings", "new_gan_trainer"]


@dataclass(frozen=True)
class GanSettings:
    """Everything that a GAN's training depends on; recorded with the run, and unchanged when the run resumes.

    Attributes that are not described here are arguments of `StyleGAN2Trainer` or, with the prefix ``augment_``, of
    `AdaptiveAugment`.

    Attributes:
        resolution: side of the images in pixels.
        batch_size: images per batch.
        discriminator: name of the discriminator's class.
        variety: see `StyleGAN2Trainer`; used with a projected discriminator only.
        init_from: ``generator.pt`` from which the training starts; None for random weights.
        draw_extra: whether images of the split extra are drawn, half of each class's where there are any; False for a
            training that goes on from one that has seen them.
        augment: "adaptive" lets the augmentation's p adapt, "fixed" keeps it.
    """

    resolution: int
    batch_size: int
    seed: int
    discriminator: str
    learning_rate: float
    discriminator_learning_rate: float
    r1_gamma: float
    variety: float
    ema_kimg: float
    init_from: str | None
    draw_extra: bool
    augment: str
    augment_p: float
    augment_target: float
    augment_kimg: float


def new_gan_trainer(
    settings: GanSettings,
    modality: Modality,
    dataset: Dataset[dict[str, Any]],
    networks: tuple[Generator, Discriminator | ProjectedDiscriminator],
    **options: Any,
) -> StyleGAN2Trainer:
    """Builds the trainer of a GAN.

    Args:
        settings: settings of the training.
        modality: modality of the images.
        dataset: training images, see `balanced_loader`.
        networks: generator and discriminator to train, in place.
        **options: further arguments of `StyleGAN2Trainer`, at least device, max_epochs and epoch_length.
    """
    generator, discriminator = networks
    return StyleGAN2Trainer(
        train_data_loader=balanced_loader(dataset, settings.batch_size, settings.seed),
        generator=generator,
        discriminator=discriminator,
        augment=AdaptiveAugment(
            p=settings.augment_p,
            target=settings.augment_target if settings.augment == "adaptive" else None,
            kimg=settings.augment_kimg,
            colour=not modality.has_one_histogram,
        ),
        learning_rate=settings.learning_rate,
        discriminator_learning_rate=settings.discriminator_learning_rate,
        r1_gamma=settings.r1_gamma,
        variety=settings.variety if isinstance(discriminator, ProjectedDiscriminator) else 0.0,
        ema_kimg=settings.ema_kimg,
        ema_rampup=0.05 if settings.init_from is None else None,
        seed=settings.seed,
        **options,
    )
