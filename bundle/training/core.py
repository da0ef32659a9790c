# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Base of all trainings: a trainer that can be stopped after any iteration and resumed bit for bit."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import Trainer

from bundle.training.memory import tell_of_memory
from bundle.training.samplers import BatchSampler
from bundle.training.seeds import stream_seed

__all__ = ["ResumableTrainer", "every_kimg"]

# Random stream of the iterations; samplers use stream 0.
STEP = 1


class ResumableTrainer(Trainer):
    """A MONAI trainer that can be stopped after any iteration and resumed bit for bit.

    Every batch depends on its number alone, and an iteration seeds its random numbers with its own number
    (`seed_iteration`), so that a resumed run is bit for bit identical to an uninterrupted one.

    Args:
        title: name of the trained network in messages and the progress bar.
        own_seed: random seed of this training alone.
        sampler: sampler of the batches.
        **options: arguments of the MONAI engine.

    Raises:
        TooLittleMemory: by `run`.
    """

    def __init__(self, title: str, own_seed: int, sampler: BatchSampler, **options: Any) -> None:
        super().__init__(**options)
        self.title = title
        self.own_seed = own_seed
        self.sampler = sampler

    @abstractmethod
    def stateful(self) -> dict[str, Any]:
        """Returns everything that an iteration changes (networks, optimisers, ...), by its name in the checkpoint."""

    @property
    def batch_size(self) -> int:
        """Images in a batch."""
        return self.sampler.batch_size

    @property
    def images_seen(self) -> int:
        """Images that the training has processed so far, repetitions included."""
        return int(self.state.iteration) * self.batch_size

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done."""
        return bool(self.state.iteration >= self.state.max_epochs * self.state.epoch_length)

    def run(self) -> None:  # type: ignore[override]
        """Trains from the current state to the last epoch."""
        if not self.is_finished:  # Ignite would restart a finished engine from the beginning
            with tell_of_memory(self.title):
                super().run()

    def training_state(self) -> dict[str, Any]:
        """Returns the complete state for resuming bit for bit; tensors and plain values only."""
        return {
            "iteration": self.state.iteration,
            **{name: part.state_dict() for name, part in self.stateful().items()},
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restores what `training_state` returned."""
        for name, part in self.stateful().items():
            part.load_state_dict(state[name])
        self.state.iteration = state["iteration"]
        self.state.epoch = state["iteration"] // self.state.epoch_length
        self.sampler.start = state["iteration"]

    def seed_iteration(self) -> None:
        """Seeds the iteration's random numbers; must be called first in each iteration."""
        torch.manual_seed(stream_seed(self.own_seed, STEP, self.state.iteration))


def every_kimg(engine: ResumableTrainer, interval_kimg: float, function: Callable[[Any], None]) -> None:
    """Calls ``function(engine)`` after every ``interval_kimg`` thousand images, and at the end."""

    def on_iteration(engine: ResumableTrainer) -> None:
        interval = interval_kimg * 1000.0
        before = engine.images_seen - engine.batch_size
        if engine.images_seen // interval > before // interval or engine.is_finished:
            function(engine)

    engine.add_event_handler(Events.ITERATION_COMPLETED, on_iteration)
