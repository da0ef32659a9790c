# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Intervals: what another draw of patients would have made of an estimate.

Whoever is drawn is a patient, with all images; synthetic images have no patients and are drawn one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch import Tensor

__all__ = [
    "DRAWS",
    "LEAST",
    "LEVEL",
    "Estimate",
    "bootstrap",
    "estimate",
    "half_samples",
    "mean",
    "patient_draws",
    "share",
]

#: Fewest images that an estimate may be published of: the mean of a single image is that image's own distance.
LEAST = 20
#: Of the two-sided intervals.
LEVEL = 0.95
#: Draws of patients for an interval.
DRAWS = 1000


@dataclass(frozen=True)
class Estimate:
    """An estimate with its interval, or the reason why there is none.

    Attributes:
        value: the estimate; NaN where it cannot be estimated.
        low: lower end of the interval at `LEVEL`.
        high: upper end.
        n: images that it was taken from.
        reason: why it cannot be estimated; empty where it can.
        replicates: what other draws would have made of it, [draws]; what figures share their draws can be compared by
            them. Empty where the interval comes from a formula.
    """

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    reason: str = ""
    replicates: NDArray[np.float64] = field(default_factory=lambda: np.empty(0), repr=False, compare=False)

    @property
    def withheld(self) -> str:
        """Why the estimate is not published: it cannot be estimated, or would tell of single images; else empty."""
        if self.reason or self.n >= LEAST:
            return self.reason
        return f"an estimate of fewer than {LEAST} images would tell of single ones; there are {self.n}"

    def content(self) -> dict[str, Any]:
        """Returns plain values for JSON, of four digits: enough to read, too few to find a single distance by.

        An estimate of fewer than `LEAST` images is withheld.
        """
        if reason := self.withheld:
            return {"not_estimable": reason, "n": self.n}
        return {name: rounded(getattr(self, name)) for name in ("value", "low", "high")} | {"n": self.n}


def rounded(value: float) -> float:
    """Rounds to four significant digits."""
    return float(f"{value:.4g}")


def patient_draws(patients: Tensor, n_draws: int, seed: int, n_patients: int | None = None) -> list[NDArray[np.int64]]:
    """Draws patients with replacement, as many as there are, and returns the indices of all their images.

    Args:
        patients: [N], whose image each one is.
        n_draws: how often.
        seed: of the draws.
        n_patients: numbers that ``patients`` may have, from 0, those without images included: sets whose patients have
            the same numbers are then drawn together, and can be compared draw by draw. None for those that are there.
    """
    random = np.random.default_rng(seed)
    numbers = patients.numpy()
    order = np.argsort(numbers, kind="stable")
    if n_patients is None:
        _, starts, counts = np.unique(numbers[order], return_index=True, return_counts=True)
    else:
        counts = np.bincount(numbers, minlength=n_patients)
        starts = np.cumsum(counts) - counts
    draws = []
    for _ in range(n_draws):
        length = np.zeros(1, dtype=np.int64)
        while not length.any():  # numbers without images may be all that is drawn, where there are few
            chosen = random.integers(len(starts), size=len(starts))
            length = counts[chosen]
        within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        draws.append(order[np.repeat(starts[chosen], length) + within])
    return draws


def bootstrap(
    values: Tensor, draws: list[NDArray[np.int64]], statistic: Callable[[Tensor], float]
) -> NDArray[np.float64]:
    """Returns a statistic of values [N], or [N, ...], on each draw."""
    return np.array([statistic(values[torch.from_numpy(draw)]) for draw in draws])


def mean(values: Tensor) -> float:
    """Returns the mean of values [...], the statistic of most figures."""
    return float(values.mean())


def estimate(value: float, replicates: NDArray[np.float64], n: int) -> Estimate:
    """Puts an estimate together with the percentile interval of its replicates; NaN are draws without a value."""
    low, high = np.nanquantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value), float(low), float(high), n, replicates=replicates)


def share(marked: Tensor, draws: list[NDArray[np.int64]]) -> Estimate:
    """Share of the images that are marked, [N] boolean.

    Where none or all are, every draw says the same: the interval then is the exact binomial one (Clopper and Pearson).
    """
    value = mean(marked.double())
    if 0 < value < 1:
        return estimate(value, bootstrap(marked.double(), draws, mean), len(marked))
    exact = binomtest(int(marked.sum()), len(marked)).proportion_ci(LEVEL, method="exact")
    same = np.full(len(draws), value)
    return Estimate(value, float(exact.low), float(exact.high), len(marked), replicates=same)


def half_samples(patients: Tensor, size: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Parts images into two halves that share no patient and returns indices of ``size`` of each.

    Args:
        patients: [N], whose image each one is.
        size: at most what the smaller half has, else that many are returned.
        random: makes the draw.
    """
    numbers = patients.numpy()
    shuffled = random.permutation(np.unique(numbers))
    order = np.argsort(np.argsort(shuffled)[np.searchsorted(np.sort(shuffled), numbers)], kind="stable")
    middle = len(order) // 2
    while 0 < middle < len(order) and numbers[order[middle]] == numbers[order[middle - 1]]:
        middle += 1
    first, second = random.permutation(order[:middle]), random.permutation(order[middle:])
    return torch.from_numpy(first[:size]), torch.from_numpy(second[:size])
