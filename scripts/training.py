# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""What the training configurations run."""

from __future__ import annotations

from bundle.training.handlers import TrainingCheckpoint
from bundle.training.stylegan2_trainer import StyleGAN2Trainer

__all__ = ["train_gan"]


def train_gan(trainer: StyleGAN2Trainer, checkpoint: TrainingCheckpoint) -> None:
    """Trains a GAN from its checkpoint, if there is one, to its last epoch.

    Args:
        trainer: the engine, with its handlers.
        checkpoint: loaded before the first iteration.
    """
    checkpoint.attach(trainer)
    if trainer.is_finished:
        print(f"{checkpoint.path} is a finished run of {trainer.images_seen} images. Raise total_kimg to train on.")
    trainer.run()
