# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Summarises the estimates of single seeds over all seeds, and compares two arms by difference or ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from bundle.auditing.resampling import LEVEL, Estimate, rounded

__all__ = ["Summary", "difference", "offsets", "over_seeds", "ratio"]

Values = NDArray[np.float64]

#: Number of equally probable values that represent the distribution of the mean over other seeds.
GRID = 199


@dataclass(frozen=True)
class Summary:
    """A measure, or a comparison of two arms, over all seeds.

    Attributes:
        value: mean over the seeds; for a comparison, the difference or ratio of the two means.
        spread: standard deviation over the seeds; NaN for a single seed.
        low: lower end of the interval, which covers other seeds and other patients or paths, see `offsets`.
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


def over_seeds(figures: Sequence[Estimate], limits: tuple[float, float] = (-np.inf, np.inf)) -> Summary:
    """Summarises one measure of one arm.

    Args:
        figures: estimates of the seeds, with replicates of the same bootstrap draws.
        limits: smallest and largest possible value, at which the interval ends.
    """
    if reason := _reason(figures):
        return Summary(n=figures[0].n, reason=reason)
    values, replicates = _stacked(figures)
    low, high = values.mean() + offsets(values, replicates)
    if len(np.unique(replicates)) == 1:  # shares of 0 or 1 have exact binomial intervals
        low, high = min(one.low for one in figures), max(one.high for one in figures)
    low, high = np.clip([low, high], *limits)
    return _summary(float(values.mean()), values, low, high, figures)


def difference(mine: Sequence[Estimate], other: Sequence[Estimate]) -> Summary:
    """Computes the mean of one arm minus that of another, paired by bootstrap draw and seed."""
    if reason := _reason((*mine, *other)):
        return Summary(n=mine[0].n, reason=reason)
    (values, replicates), (other_values, other_replicates) = _stacked(mine), _stacked(other)
    single = values - other_values
    low, high = single.mean() + offsets(single, replicates - other_replicates)
    return _summary(float(single.mean()), single, low, high, mine)


def ratio(mine: Sequence[Estimate], other: Sequence[Estimate]) -> Summary:
    """Computes the mean of one arm divided by that of another, paired by bootstrap draw and seed.

    The interval is that of the logarithm, to first order in the deviations from the two means.
    """
    reason = _reason((*mine, *other))
    means = [float(np.mean([one.value for one in side])) for side in (mine, other)]
    if not reason and min(means) <= 0.0:
        reason = "a mean is not above 0, and a ratio would say nothing"
    if reason:
        return Summary(n=mine[0].n, reason=reason)
    (values, replicates), (other_values, other_replicates) = _stacked(mine), _stacked(other)
    value = means[0] / means[1]
    relative = values / means[0] - other_values / means[1]
    low, high = value * np.exp(offsets(relative, replicates / means[0] - other_replicates / means[1]))
    with np.errstate(divide="ignore"):
        return _summary(value, values / other_values, low, high, mine)


def offsets(values: Values, replicates: Values) -> Values:
    """Computes the ends of the interval of a mean over seeds, less this mean.

    Two sources of error are independent: the seeds, with the images that only one seed has (synthetic paths), and the
    images that all seeds share (real patients and the thresholds that they set). The first is Student's distribution
    with n - 1 degrees of freedom, scaled by the deviation between the seeds, because the deviation of few seeds is
    itself uncertain. The second is the distribution of the mean's bootstrap replicates, scaled to the variance that is
    common to the seeds. The interval holds the middle 95 % of their sum. A single seed has the second one alone.

    Args:
        values: value [S] of each seed.
        replicates: replicates [S, draws] of each seed; column by column of the same draw of patients. Columns with a
            NaN are ignored.

    Returns:
        Lower and upper end, relative to the mean of the values.
    """
    n = len(values)
    drawn = replicates[:, ~np.isnan(replicates).any(axis=0)]
    if not drawn.size:
        return np.array([np.nan, np.nan])
    noise = drawn.mean(axis=0) - values.mean()
    if n > 1:
        total, single = noise.var(ddof=1), drawn.var(axis=1, ddof=1).mean()
        own = max(0.0, (single - total) * n / (n - 1))  # of what only one seed has
        common = max(0.0, total - own / n)
        # Seeds may agree by chance, for example on a share of few images.
        deviation = values.std(ddof=1) or np.sqrt(own)
        between = t.ppf((np.arange(GRID) + 0.5) / GRID, n - 1) * deviation / np.sqrt(n)
        noise = ((np.sqrt(common / total) if total else 0.0) * noise[:, None] + between).ravel()
    return np.quantile(noise, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])


def _reason(figures: Sequence[Estimate]) -> str:
    return next((one.reason for one in figures if one.reason), "")


def _stacked(figures: Sequence[Estimate]) -> tuple[Values, Values]:
    return np.array([one.value for one in figures]), np.stack([one.replicates for one in figures])


def _summary(value: float, single: Values, low: float, high: float, figures: Sequence[Estimate]) -> Summary:
    spread = float(single.std(ddof=1)) if len(single) > 1 else np.nan
    return Summary(value, spread, float(low), float(high), tuple(map(float, single)), figures[0].n)
