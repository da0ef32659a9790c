# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The options of a GAN's training in one place, and the trainer that follows them."""

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
    """What a GAN's training depends on: recorded with the run, and the same when the run is resumed.

    Attributes:
        resolution: of the images in pixels.
        batch_size: images in a batch.
        seed: random seed of the training.
        discriminator: name of the discriminator's class.
        learning_rate: of the generator.
        discriminator_learning_rate: of the discriminator.
        r1_gamma: weight of R1; 0 leaves it out.
        variety: weight of the loss on variety; takes effect with a projected discriminator alone.
        ema_kimg: half-life of the generator's average, in thousands of images.
        init_from: the ``generator.pt`` that the training starts from; None for random weights.
        augment: "adaptive" lets ADA adjust the probability of augmentation, "fixed" keeps it.
        augment_p: that probability at the start.
        augment_target: mean sign of the discriminator's logits that ADA aims at.
        augment_kimg: thousands of images in which ADA takes the probability from 0 to 1 at the fastest.
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
        settings: of the training.
        modality: of the images.
        dataset: what is trained on, see `balanced_loader`.
        networks: generator and discriminator, trained in place.
        **options: further arguments of `StyleGAN2Trainer`: device, max_epochs and epoch_length at least.
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
