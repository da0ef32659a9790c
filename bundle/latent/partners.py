# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Which centroids of a class become the two ends of a path."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.spatial.distance import cdist
from torch import Tensor

__all__ = ["number_of_pairs", "partners"]


def number_of_pairs(n_centroids: int) -> int:
    """Returns how many different pairs there are; each gives one path, since a walk between two ends has one result."""
    return n_centroids * (n_centroids - 1) // 2


def partners(centroids: Tensor, seed: int, label: int) -> Iterator[tuple[int, int]]:
    """Yields every pair of centroids once, so that the first ones are long and all centroids are used alike.

    The pairs come in rounds. In a round, the centroids choose in turn, those first that have the fewest partners so
    far, in an order that is drawn for the round: each takes the farthest of the centroids that have no partner in this
    round and have never been its partner. Long paths hold more different images; other partners in each round make
    paths with an end in common lead elsewhere; and no centroid stands behind many more images than another. The order
    is drawn, since an end point that always chooses first would always lie on the longest paths.

    Args:
        centroids: [M, D]; their Euclidean distances count.
        seed: random seed of the order in which centroids choose.
        label: class of the centroids, a part of the seed.

    Yields:
        Indices of two different centroids.
    """
    points = centroids.detach().cpu().double().numpy()
    distances = cdist(points, points)
    unused = ~np.eye(len(points), dtype=bool)
    uses = np.zeros(len(points), dtype=np.int64)
    random = np.random.default_rng((seed, label))
    while unused.any():
        free = np.ones(len(points), dtype=bool)
        for one in np.lexsort((random.permutation(len(points)), uses)):
            chooses, free[one] = free[one], False
            possible = unused[one] & free
            if chooses and possible.any():
                other = int(np.where(possible, distances[one], -1.0).argmax())
                free[other] = unused[one, other] = unused[other, one] = False
                uses[[one, other]] += 1
                yield int(one), other
