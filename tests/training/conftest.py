# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""A GAN that trains in milliseconds, and the end of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import Dataset

from bundle.networks.stylegan2 import Discriminator, Generator
from bundle.training.augment import AdaptiveAugment
from bundle.training.stylegan2_trainer import StyleGAN2Trainer, balanced_loader

NewTrainer = Callable[..., StyleGAN2Trainer]


class Killed(Exception):
    """What `KillAt` raises."""


class KillAt:
    """Ends a run the hard way at an iteration."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED(once=self.iteration), self._kill)

    def _kill(self, engine: Engine) -> None:
        raise Killed


@pytest.fixture
def new_trainer() -> NewTrainer:
    """Builds an engine of 2 epochs of 3 iterations of 4 images at 32 px, always with the same networks and data."""

    def build(**options: Any) -> StyleGAN2Trainer:
        random = torch.Generator().manual_seed(5)
        data = [
            {"image": torch.rand(1, 32, 32, generator=random) * 2 - 1, "label": i % 3 // 2, "split": "train"}
            for i in range(12)
        ]
        seed = options.get("seed", 0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            networks = {
                "generator": Generator(32, z_dim=4, w_dim=4, channel_base=128, channel_max=4),
                "discriminator": Discriminator(32, channel_base=128, channel_max=4),
            }
        return StyleGAN2Trainer(
            **{
                "device": "cpu",
                "max_epochs": 2,
                "epoch_length": 3,
                "train_data_loader": balanced_loader(Dataset(data), 4, seed),
                **networks,
                "augment": AdaptiveAugment(p=0.2, kimg=0.05, interval=2),
                "r1_interval": 2,
                **options,
            }
        )

    return build


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "gan.pt"
