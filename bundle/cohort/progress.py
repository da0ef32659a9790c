# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Progress bar of a cohort's generation."""

from __future__ import annotations

import sys
import time
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch import Tensor
from tqdm import tqdm

from bundle.cohort.ledger import WalkLedger

__all__ = ["GenerationProgress"]


class GenerationProgress:
    """Progress bar over the images of the cohort that advances with each step of the walk and is full only at the end.

    Args:
        ledger: record of the cohort's walked pairs.
        steps: largest number of steps of a walk.
    """

    def __init__(self, ledger: WalkLedger, steps: int) -> None:
        self.ledger = ledger
        self.steps = steps
        self._bar: Any = None
        self._step = 0
        self._started = 0.0
        self._before = 0
        self._estimated = False

    def attach(self, engine: Engine) -> None:
        """Registers the events that open, update and close the bar."""
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._block_done)
        engine.add_event_handler(Events.COMPLETED, self._close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._break_off)

    def step(self, points: Tensor) -> None:
        """Advances the bar by one step of the walk; a callback for `bundle.walk.path.walk`."""
        if self._bar is None:
            return
        self._step += 1
        self._show(self.ledger.done()[0] + self.ledger.expected() * min(1.0, self._step / self.steps))
        self._bar.set_postfix_str(f"step {self._step} of at most {self.steps}", refresh=False)
        self._bar.update(0)

    def _show(self, images: float) -> None:
        # tqdm would round 99.5 % to 100 %.
        wanted = self.ledger.done()[1]
        self._bar.n = max(0, min(int(images), wanted * 99 // 100, wanted - 1))

    def _open(self, engine: Engine) -> None:
        done, wanted = self.ledger.done()
        slow = 0.5 if sys.stderr.isatty() else 30.0
        self._started, self._before = time.monotonic(), done
        self._bar = tqdm(
            total=wanted,
            initial=min(done, wanted * 99 // 100),
            unit="image",
            desc="walking",
            mininterval=slow,
            dynamic_ncols=True,
            disable=idist.get_rank() > 0,
        )

    def _block_done(self, engine: Engine) -> None:
        self._step = 0
        if idist.get_world_size() > 1 and idist.get_rank() == 0:
            self.ledger.refresh()
        done, wanted = self.ledger.done()
        self._show(done)
        self._bar.update(0)
        if not self._estimated and done > self._before and idist.get_rank() == 0:
            self._estimated = True
            seconds = (time.monotonic() - self._started) / (done - self._before) * (wanted - done)
            if done < wanted:
                self._bar.write(
                    f"At the speed of the first block, the rest takes about {_duration(seconds)}.", sys.stderr
                )

    def _close(self, engine: Engine) -> None:
        self._bar.n = self.ledger.done()[0]
        self._bar.close()

    def _break_off(self, engine: Engine, error: BaseException) -> None:
        if self._bar is not None:
            self._bar.close()  # otherwise the error message would continue the bar's line
        raise error


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
