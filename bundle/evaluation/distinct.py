# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""How many of 64 images of a set differ from each other: what a set is worth to somebody who receives a part of it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bundle.auditing.assessment import HALVES
from bundle.auditing.resampling import Estimate, estimate
from bundle.auditing.thresholds import Threshold

__all__ = ["DRAWN", "distinct_estimate", "distinct_images", "half_of_groups"]

#: Number of images that are drawn.
DRAWN = 64
# Number of draws for the value, and for each replicate of the interval.
DRAWS_OF_ALL, DRAWS_OF_HALF = 400, 25


def distinct_images(alike: NDArray[np.bool_]) -> int:
    """Returns the size of a set of images of which no two are near-duplicates, built greedily.

    Of the images that remain, the one with the fewest near-duplicates is kept and its near-duplicates are removed,
    until none remains. The result is at most the size of the largest such set.

    Args:
        alike: whether two images are near-duplicates, symmetric, bool [N, N]; the diagonal is ignored.
    """
    alike = alike.copy()
    np.fill_diagonal(alike, False)
    count = 0
    while len(alike):
        near = alike.sum(axis=1)
        single = near == 0
        if single.any():  # they stay whatever else is kept
            count += int(single.sum())
            alike = alike[~single][:, ~single]
            continue
        first = int(near.argmin())
        rest = ~alike[first]
        rest[first] = False
        count += 1
        alike = alike[rest][:, rest]
    return count


def distinct_estimate(
    points: Tensor, groups: Tensor, n_groups: int | None, threshold: Threshold, seed: int
) -> Estimate:
    """Estimates the mean number of distinct images among `DRAWN` images that are drawn at random from a set.

    The interval comes from half-samples of the groups, because an image that is drawn twice would be its own
    near-duplicate; the threshold is drawn anew with each of them.

    Args:
        points: embeddings [N, D] of unit length.
        groups: group number [N] of each image, such as its path or patient.
        n_groups: number of groups, see `half_of_groups`.
        threshold: correlation above which two images are near-duplicates.
        seed: seed of all draws.
    """
    n = len(points)
    if n < 2 * DRAWN:
        return Estimate(n=n, reason=f"{DRAWN} images are drawn from halves of at least as many; there are {n} images")
    similarity = (points @ points.T).double().numpy()
    random = np.random.default_rng(seed)

    def mean_number(members: NDArray[np.int64], bar: float, n_draws: int) -> float:
        drawn = [random.permutation(members)[:DRAWN] for _ in range(n_draws)]
        return float(np.mean([distinct_images(similarity[np.ix_(chosen, chosen)] > bar) for chosen in drawn]))

    value = mean_number(np.arange(n), threshold.value, DRAWS_OF_ALL)
    replicates = np.array(
        [
            mean_number(half_of_groups(groups, n_groups, random).numpy(), bar, DRAWS_OF_HALF)
            for bar in threshold.replicates[:HALVES]
        ]
    )
    # Half-samples have fewer paths, and so more images of one path; centring removes this bias.
    return estimate(value, (replicates - replicates.mean() + value).clip(1, DRAWN), n)


def half_of_groups(groups: Tensor, n_groups: int | None, random: np.random.Generator) -> Tensor:
    """Returns the images of half of the groups, the first ones of a random order that arms share by their numbering.

    Args:
        groups: group number [N] of each image.
        n_groups: number of groups, including those without images; None for one more than the highest number.
        random: random generator of the order.
    """
    order = torch.from_numpy(random.permutation(n_groups or int(groups.max()) + 1))
    present = order[torch.isin(order, groups)]
    return torch.isin(groups, present[: max(1, len(present) // 2)]).nonzero()[:, 0]
