# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Summarises the estimates of single seeds over all seeds, and compares two arms by difference or ratio."""

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
    """A measure, or a comparison of two arms, over all seeds.

    Attributes:
        value: mean over the seeds; for a comparison, the difference or ratio of the two means.
        spread: standard deviation over the seeds; NaN for a single seed.
        low: lower end of the interval, from bootstrap draws of both patients (or paths) and seeds.
        high: upper end of the interval.
        seeds: values of the single seeds.
        n: number of images behind the value of the first seed.
        reason: reason why it cannot be estimated; empty if it can.
    """

    value: float = np.nan
    spread: float = np.nan
    low: float = np.nan
    high: float = np.nan
    seeds: tuple[float, ...] = ()
    n: int = 0
    reason: str = ""

    def content(self) -> dict[str, Any]:
        """Returns plain values for JSON, rounded to four digits."""
        if self.reason:
            return {"not_estimable": self.reason, "n": self.n}
        spread = {} if np.isnan(self.spread) else {"spread": rounded(self.spread)}
        values = {name: rounded(getattr(self, name)) for name in ("value", "low", "high")}
        return {**values, **spread, "seeds": [rounded(value) for value in self.seeds], "n": self.n}


def over_seeds(figures: Sequence[Estimate]) -> Summary:
    """Summarises one measure of one arm.

    Args:
        figures: estimates of the seeds, with replicates of the same bootstrap draws.
    """
    return compare(figures, figures, lambda mine, _: mine)


def difference(mine: Sequence[Estimate], other: Sequence[Estimate]) -> Summary:
    """Computes the mean of one arm minus that of another, paired by bootstrap draw and seed."""
    return compare(mine, other, np.subtract)


def ratio(mine: Sequence[Estimate], other: Sequence[Estimate]) -> Summary:
    """Computes the mean of one arm divided by that of another, paired by bootstrap draw and seed."""
    return compare(mine, other, np.divide)


def compare(mine: Sequence[Estimate], other: Sequence[Estimate], how: Binary) -> Summary:
    """Compares the means of two arms over the same seeds.

    Seeds are drawn with replacement in each bootstrap draw as well, so that the interval covers the variation over
    patients (or paths) and over seeds; with a single seed it covers the former only.

    Args:
        mine: estimates of the first arm, one per seed.
        other: estimates of the second arm, in the same order.
        how: function of the two means, such as their difference.
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
    if mine is other and len(set(replicates.tolist())) == 1:  # shares of 0 or 1 have exact binomial intervals
        low, high = min(estimate.low for estimate in mine), max(estimate.high for estimate in mine)
    spread = float(single.std(ddof=1)) if len(mine) > 1 else np.nan
    return Summary(value, spread, float(low), float(high), tuple(map(float, single)), n)
