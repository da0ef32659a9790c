# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Functions that the training configurations run."""

from __future__ import annotations

from collections.abc import Sequence

from bundle.command_line import plain_errors
from bundle.training import init_from
from bundle.training.best_generator import BestGenerator
from bundle.training.checkpoint import TrainingCheckpoint
from bundle.training.errors import TrainingError
from bundle.training.network_trainer import NetworkTrainer
from bundle.training.stylegan2_trainer import StyleGAN2Trainer

__all__ = ["default_resolution", "train_gan", "train_networks"]


def default_resolution(generator: str | None) -> int:
    """Returns `bundle.training.init_from.default_resolution`.

    Args:
        generator: path of a ``generator.pt``, with its JSON beside it, that need not exist.

    Raises:
        SystemExit: with a one-line message, if the JSON is damaged. The resolution is an argument of `check_options`,
            so this error occurs before that function makes the command line show errors this way.
    """
    with plain_errors():
        return init_from.default_resolution(generator)


def train_gan(trainer: StyleGAN2Trainer, checkpoint: TrainingCheckpoint) -> None:
    """Trains a GAN from its checkpoint, if there is one, to its last epoch.

    Args:
        trainer: engine with its handlers.
        checkpoint: checkpoint, loaded before the first iteration. If its part ``best`` is a `BestGenerator`, weights
            that are missing from the models folder or damaged are written again.

    Raises:
        TrainingError: total_kimg is less than one image.
        CheckpointError: the checkpoint is damaged, or belongs to a run with other options.
        InUseError: another run trains in the folder.
        WeightsError: the models folder holds another run's weights.
        UnsealedError: the run is finished, and its weights were written by an earlier version.
    """
    if trainer.state.max_epochs < 1:
        raise TrainingError("--total_kimg comes to no image. Give at least 0.001, which is one image.")
    with checkpoint.lock():
        checkpoint.attach(trainer)
        best = checkpoint.parts.get("best")
        if isinstance(best, BestGenerator) and best.restore(trainer):
            checkpoint.save()
        if trainer.is_finished:
            print(f"{checkpoint.path} is a finished run of {trainer.images_seen} images. Raise total_kimg to train on.")
        trainer.run()


def train_networks(trainers: Sequence[NetworkTrainer]) -> None:
    """Trains networks one after the other, each from its checkpoint, if there is one; finished ones are verified."""
    for trainer in trainers:
        trainer.run()
