# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Estimates with confidence intervals from a bootstrap over patients.

A bootstrap draw takes patients with all of their images. Synthetic images have no patients: they are drawn singly or by
groups, such as paths.
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
    "LEAST_FOR_PERCENTILE",
    "LEVEL",
    "Estimate",
    "bootstrap",
    "estimate",
    "exact_share",
    "half_samples",
    "mean",
    "patient_draws",
    "percentile_needs_more",
    "share",
]

#: Fewest images for a published estimate; with fewer, it would disclose the distances of single images.
LEAST = 20
#: Fewest images for a 5th percentile; with fewer, it would nearly disclose the distance of a single image.
LEAST_FOR_PERCENTILE = 50
#: Level of the two-sided confidence intervals.
LEVEL = 0.95
#: Number of bootstrap draws for an interval.
DRAWS = 1000


@dataclass(frozen=True)
class Estimate:
    """An estimate with its confidence interval, or the reason why there is none.

    Attributes:
        value: estimate; NaN if it cannot be estimated.
        low: lower end of the interval at `LEVEL`.
        high: upper end of the interval.
        n: number of images behind the estimate.
        reason: reason why it cannot be estimated; empty if it can.
        replicates: value [draws] for each bootstrap draw; estimates with the same draws can be compared draw by draw.
    """

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    reason: str = ""
    replicates: NDArray[np.float64] = field(default_factory=lambda: np.empty(0), repr=False, compare=False)

    @property
    def withheld(self) -> str:
        """Reason why the estimate is not published, including too few images; empty if it is published."""
        if self.reason or self.n >= LEAST:
            return self.reason
        return f"an estimate of fewer than {LEAST} images would tell of single ones; there are {self.n}"

    def content(self) -> dict[str, Any]:
        """Returns plain values for JSON, rounded so that they do not identify single images, or the reason for none."""
        if reason := self.withheld:
            return {"not_estimable": reason, "n": self.n}
        return {name: rounded(getattr(self, name)) for name in ("value", "low", "high")} | {"n": self.n}


def rounded(value: float) -> float:
    """Rounds to four significant digits."""
    return float(f"{value:.4g}")


def patient_draws(patients: Tensor, n_draws: int, seed: int, n_patients: int | None = None) -> list[NDArray[np.int64]]:
    """Draws as many patients as there are, with replacement, and returns the indices of all of their images.

    Args:
        patients: patient number [N] of each image.
        n_draws: number of bootstrap draws.
        seed: seed of the bootstrap draws.
        n_patients: number of patients, including those without images; sets with the same numbering (from 0) and seed
            then get the same draws and can be compared draw by draw. None for the patients that have images.
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
        while not length.any():  # a draw may consist of patients without images only
            chosen = random.integers(len(starts), size=len(starts))
            length = counts[chosen]
        within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        draws.append(order[np.repeat(starts[chosen], length) + within])
    return draws


def bootstrap(
    values: Tensor, draws: list[NDArray[np.int64]], statistic: Callable[[Tensor], float]
) -> NDArray[np.float64]:
    """Returns the statistic of values [N] or [N, ...] for each bootstrap draw."""
    return np.array([statistic(values[torch.from_numpy(draw)]) for draw in draws])


def mean(values: Tensor) -> float:
    """Returns the mean of values [...]."""
    return float(values.mean())


def estimate(value: float, replicates: NDArray[np.float64], n: int) -> Estimate:
    """Returns an estimate with the percentile interval of its replicates; NaN replicates are ignored."""
    low, high = np.nanquantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value), float(low), float(high), n, replicates=replicates)


def exact_share(count: int, n: int, replicates: NDArray[np.float64], n_images: int | None = None) -> Estimate:
    """Estimates a share of which bootstrap draws say nothing, with the exact binomial interval of Clopper and Pearson.

    Args:
        count: number of marked cases.
        n: number of cases.
        replicates: replicates to keep with the estimate.
        n_images: number of images to state; None for ``n``.
    """
    exact = binomtest(count, n).proportion_ci(LEVEL, method="exact")
    return Estimate(count / n, float(exact.low), float(exact.high), n_images or n, replicates=replicates)


def share(marked: Tensor, draws: list[NDArray[np.int64]]) -> Estimate:
    """Estimates the share of marked images, ``marked`` being bool [N].

    If none or all are marked, all bootstrap draws are equal; the interval is then the exact binomial one of Clopper and
    Pearson.
    """
    value = mean(marked.double())
    if 0 < value < 1:
        return estimate(value, bootstrap(marked.double(), draws, mean), len(marked))
    return exact_share(int(marked.sum()), len(marked), np.full(len(draws), value))


def half_samples(patients: Tensor, size: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Splits images at random into two halves without common patients and returns indices of both.

    Args:
        patients: patient number [N] of each image.
        size: largest number of indices returned of each half.
        random: random generator of the split.
    """
    numbers = patients.numpy()
    shuffled = random.permutation(np.unique(numbers))
    order = np.argsort(np.argsort(shuffled)[np.searchsorted(np.sort(shuffled), numbers)], kind="stable")
    middle = len(order) // 2
    while 0 < middle < len(order) and numbers[order[middle]] == numbers[order[middle - 1]]:
        middle += 1
    first, second = random.permutation(order[:middle]), random.permutation(order[middle:])
    return torch.from_numpy(first[:size]), torch.from_numpy(second[:size])


def percentile_needs_more(n: int) -> str:
    """Returns the reason why no percentile of n images is published."""
    return f"a 5th percentile needs at least {LEAST_FOR_PERCENTILE} images; there are {n}"
