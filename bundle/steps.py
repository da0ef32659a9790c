# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Long computations in steps whose results are kept on disk, run by an Ignite engine so that a stopped run resumes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ignite.engine import Engine, Events
from torch import Tensor
from tqdm import tqdm

from bundle.files import load_tensors, save_tensors
from bundle.precision import full_fp32

__all__ = ["Step", "StepEngine", "StepProgress", "Steps", "Tensors"]

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """One step of a computation.

    Attributes:
        name: name of its file, without suffix.
        cost: approximate duration in CPU-milliseconds.
        compute: function that returns its result.
        path: file that keeps the result; None for a step that keeps none.
    """

    name: str
    cost: float
    compute: Callable[[], Tensors]
    path: Path | None = None

    @full_fp32()
    def run(self) -> None:
        """Computes and keeps the result, unless an earlier run has done so."""
        if self.path is None:
            self.compute()
        elif not self.is_kept():
            save_tensors(self.path, self.compute())

    def result(self) -> Tensors:
        """Returns the result, from an earlier run or computed (and kept) now."""
        if self.path is None:
            return self.compute()
        self.run()
        kept: Tensors = load_tensors(self.path)
        return kept

    def is_kept(self) -> bool:
        """Returns whether the result exists already."""
        return self.path is not None and self.path.exists()


class Steps:
    """Factory of steps whose results are kept in one folder.

    Args:
        folder: private folder, named after everything that the steps depend on.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def step(self, name: str, cost: float, compute: Callable[[], Tensors]) -> Step:
        """Returns a step whose result is kept in this folder."""
        return Step(name, cost, compute, self.folder / f"{name}.pt")

    def read(self, name: str) -> Tensors:
        """Returns the result of a step that has run."""
        result: Tensors = load_tensors(self.folder / f"{name}.pt")
        return result


class StepProgress:
    """Progress bar over the steps of an engine, with the remaining time.

    Args:
        title: description of the computation.
    """

    def __init__(self, title: str) -> None:
        self.title = title

    def attach(self, engine: Engine) -> None:
        """Registers the events that open, advance and close the bar."""
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_STARTED, self._name)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.COMPLETED, lambda: self._bar.close())

    def _open(self, engine: StepEngine) -> None:
        # Steps kept by an earlier run count as done but not towards the speed of this one.
        self._kept = {id(step) for step in engine.steps if step.is_kept()}
        self._bar = tqdm(
            total=sum(step.cost for step in engine.steps),
            initial=sum(step.cost for step in engine.steps if id(step) in self._kept),
            smoothing=0.0,
            desc=self.title,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left{postfix}",
            mininterval=0.5 if sys.stderr.isatty() else 20.0,
            dynamic_ncols=True,
        )

    def _name(self, engine: StepEngine) -> None:
        self._bar.set_postfix_str(self._step(engine).name.replace("_", " "))

    def _advance(self, engine: StepEngine) -> None:
        if id(self._step(engine)) not in self._kept:
            self._bar.update(self._step(engine).cost)

    @staticmethod
    def _step(engine: StepEngine) -> Step:
        return cast(Step, engine.state.batch)


class StepEngine(Engine):
    """Runs steps, one in each iteration.

    Args:
        title: description of the computation, for the progress bar.
        handlers: further Ignite handlers.

    Attributes:
        steps: steps in their order; set before the engine runs.
    """

    def __init__(self, title: str, handlers: Sequence[Any] | None = None) -> None:
        super().__init__(lambda engine, step: self.take(step))
        self.steps: list[Step] = []
        for handler in [StepProgress(title), *(handlers or [])]:
            handler.attach(self)

    def run(self) -> Any:  # type: ignore[override]
        """Runs all steps."""
        return super().run(self.steps, max_epochs=1, epoch_length=len(self.steps))

    def take(self, step: Step) -> dict[str, Any]:
        """Runs one step; returns the ``state.output`` for handlers."""
        step.run()
        return {}
