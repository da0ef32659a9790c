# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""From the figures of single seeds to what is said of all of them, and of two arms that were measured alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bundle.auditing.resampling import LEVEL, Estimate, rounded

__all__ = ["Summary", "compare", "difference", "over_seeds", "ratio"]

Binary = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Summary:
    """A measure over seeds.

    Attributes:
        value: mean over the seeds; of a comparison, that of the two means.
        spread: standard deviation over the seeds; NaN for a single one.
        low: lower end of the interval, for which both patients (or paths) and seeds were drawn anew.
        high: upper end.
        seeds: the value of each.
        n: images behind the first of them.
        reason: why it cannot be estimated; empty where it can.
    """

    value: float = np.nan
    spread: float = np.nan
    low: float = np.nan
    high: float = np.nan
    seeds: tuple[float, ...] = ()
    n: int = 0
    reason: str = ""

    def content(self) -> dict[str, Any]:
        """Returns plain values for JSON, of four digits."""
        if self.reason:
            return {"not_estimable": self.reason, "n": self.n}
        spread = {} if np.isnan(self.spread) else {"spread": rounded(self.spread)}
        values = {name: rounded(getattr(self, name)) for name in ("value", "low", "high")}
        return {**values, **spread, "seeds": [rounded(value) for value in self.seeds], "n": self.n}


def over_seeds(figures: Sequence[Estimate]) -> Summary:
    """Sums up one measure of one arm.

    Args:
        figures: one of each seed, with replicates of the same draws.
    """
    return compare(figures, figures, lambda mine, _: mine)


def difference(mine: Sequence[Estimate], other: Sequence[Estimate]) -> Summary:
    """Mean of one arm less that of another, draw by draw and seed by seed."""
    return compare(mine, other, np.subtract)


def ratio(mine: Sequence[Estimate], other: Sequence[Estimate]) -> Summary:
    """Mean of one arm by that of another, draw by draw and seed by seed."""
    return compare(mine, other, np.divide)


def compare(mine: Sequence[Estimate], other: Sequence[Estimate], how: Binary) -> Summary:
    """Compares the means of two arms over the same seeds.

    In each draw, the seeds are drawn with replacement as well, so that the interval holds both what other patients (or
    other paths) and what other seeds would have made of it. With a single seed it holds the former alone.

    Args:
        mine: figures of the first arm, one of each seed.
        other: of the second, in the same order.
        how: what is taken of the two means.
    """
    reason = next((estimate.reason for estimate in (*mine, *other) if estimate.reason), "")
    n = mine[0].n
    if reason:
        return Summary(n=n, reason=reason)
    random = np.random.default_rng(0)
    values = [np.array([estimate.value for estimate in side]) for side in (mine, other)]
    drawn = [np.stack([estimate.replicates for estimate in side]) for side in (mine, other)]
    n_draws = drawn[0].shape[1]
    seeds = random.integers(len(mine), size=(len(mine), n_draws))
    columns = np.arange(n_draws)
    with np.errstate(divide="ignore", invalid="ignore"):
        replicates = how(*(side[seeds, columns].mean(axis=0) for side in drawn))
        single = how(*values)
        value = float(how(*(np.array(side.mean()) for side in values)))
    low, high = np.nanquantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if mine is other and len(set(replicates.tolist())) == 1:  # none or all in every draw, which is no certainty
        low, high = min(estimate.low for estimate in mine), max(estimate.high for estimate in mine)
    spread = float(single.std(ddof=1)) if len(mine) > 1 else np.nan
    return Summary(value, spread, float(low), float(high), tuple(map(float, single)), n)
