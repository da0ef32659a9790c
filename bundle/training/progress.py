# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Progress bar of a training."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ignite.engine import Engine, Events
from tqdm import tqdm

from bundle.training.core import ResumableTrainer

__all__ = ["TrainingProgress"]


class TrainingProgress:
    """Shows the images processed by the whole training, images/s, the remaining time and values of the last iteration.

    Args:
        formats: format of each displayed value of an iteration's output, such as ``{"loss": ".2f"}``.
        smoothed: names of values displayed as a moving average over about 20 iterations.
    """

    def __init__(self, formats: Mapping[str, str], smoothed: Sequence[str] = ()) -> None:
        self.formats = formats
        self.smoothed = smoothed

    def attach(self, engine: Engine) -> None:
        """Registers the events that open, advance and close the bar."""
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.COMPLETED, lambda: self._bar.close())

    def _open(self, engine: ResumableTrainer) -> None:
        self._averages: dict[str, float] = {}
        self._bar = tqdm(
            total=engine.state.max_epochs * engine.state.epoch_length * engine.batch_size,
            initial=engine.images_seen,
            unit="image",
            unit_scale=True,
            desc=f"training {engine.title}",
            mininterval=0.5 if sys.stderr.isatty() else 60.0,
            dynamic_ncols=True,
        )

    def _advance(self, engine: ResumableTrainer) -> None:
        output: dict[str, Any] = engine.state.output
        values = {name: float(output[name]) for name in self.formats}
        for name in self.smoothed:
            values[name] = 0.95 * self._averages.get(name, values[name]) + 0.05 * values[name]
            self._averages[name] = values[name]
        shown = {name: format(value, self.formats[name]) for name, value in values.items()}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(engine.batch_size)
