# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""What every training is built on: it can be stopped after any iteration and resumed to the same bits."""

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

# Stream of random numbers that each iteration has of its own; samplers take stream 0.
STEP = 1


class ResumableTrainer(Trainer):
    """A MONAI trainer that can be stopped after any iteration and resumed to the same bits.

    Every batch depends on its number alone, and an iteration draws all its random numbers from a stream that its own
    number seeds (`seed_iteration`): a run resumed from `training_state` is bit for bit the run that was never stopped.

    Args:
        title: what is trained, as messages and the progress bar call it.
        own_seed: random seed of this training alone.
        sampler: draws the batches.
        **options: of the MONAI engine.

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
        """Returns everything that an iteration changes, by its name in the checkpoint: networks, optimisers, ..."""

    @property
    def batch_size(self) -> int:
        """Images in a batch."""
        return self.sampler.batch_size

    @property
    def images_seen(self) -> int:
        """Images that the training has shown so far, repetitions included."""
        return int(self.state.iteration) * self.batch_size

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done."""
        return bool(self.state.iteration >= self.state.max_epochs * self.state.epoch_length)

    def run(self) -> None:  # type: ignore[override]
        """Trains to the last epoch, from wherever the state stands."""
        if not self.is_finished:  # Ignite would take a finished engine for a new one and start over
            with tell_of_memory(self.title):
                super().run()

    def training_state(self) -> dict[str, Any]:
        """All that a run needs to be resumed bit for bit; tensors and plain values only."""
        return {
            "iteration": self.state.iteration,
            **{name: part.state_dict() for name, part in self.stateful().items()},
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Takes over what `training_state` returned."""
        for name, part in self.stateful().items():
            part.load_state_dict(state[name])
        self.state.iteration = state["iteration"]
        self.state.epoch = state["iteration"] // self.state.epoch_length
        self.sampler.start = state["iteration"]

    def seed_iteration(self) -> None:
        """Starts the iteration's stream of random numbers; the first thing that an iteration does."""
        torch.manual_seed(stream_seed(self.own_seed, STEP, self.state.iteration))


def every_kimg(engine: ResumableTrainer, interval_kimg: float, function: Callable[[Any], None]) -> None:
    """Calls ``function(engine)`` whenever another ``interval_kimg`` thousand images are done, and at the end."""

    def on_iteration(engine: ResumableTrainer) -> None:
        interval = interval_kimg * 1000.0
        before = engine.images_seen - engine.batch_size
        if engine.images_seen // interval > before // interval or engine.is_finished:
            function(engine)

    engine.add_event_handler(Events.ITERATION_COMPLETED, on_iteration)
