# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bundle.latent.partners import number_of_pairs, partners


def points(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


def length(centroids: Tensor, pairs: list[tuple[int, int]]) -> float:
    ends = centroids[torch.tensor(pairs)]
    return float((ends[:, 0] - ends[:, 1]).norm(dim=1).mean())


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.integers(0, 12), st.integers(0, 2**32 - 1), st.integers(0, 4), st.booleans())
def test_every_pair_comes_once_and_no_centroid_meets_itself(n: int, seed: int, label: int, alike: bool) -> None:
    centroids = torch.zeros(n, 4) if alike else points(n)
    found = [frozenset(pair) for pair in partners(centroids, seed, label)]
    assert len(found) == len(set(found)) == number_of_pairs(n)
    assert all(len(pair) == 2 for pair in found)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.integers(2, 30), st.integers(0, 2**32 - 1))
def test_centroids_are_used_alike_from_the_first_pair_on(n: int, seed: int) -> None:
    """In each of the first rounds everybody has one partner, but one of an odd number, who then chooses first."""
    for pairs in range(1, n // 4 * (n // 2) + 1):
        uses = Counter(end for pair in islice(partners(points(n), seed, 0), pairs) for end in pair)
        assert max(uses.values()) - min(uses[one] for one in range(n)) <= 2


def test_the_first_pairs_are_long() -> None:
    centroids = points(40)
    every = list(partners(centroids, 0, 0))
    assert length(centroids, every[:20]) > 1.15 * length(centroids, every)


def test_order_depends_on_seed_and_class_alone() -> None:
    first = list(islice(partners(points(20), 0, 0), 30))
    assert first == list(partners(points(20), 0, 0))[:30]
    assert first != list(islice(partners(points(20), 1, 0), 30))
    assert first != list(islice(partners(points(20), 0, 1), 30))


@pytest.mark.parametrize(("n", "pairs"), [(0, 0), (1, 0), (2, 1), (3, 3), (10, 45)])
def test_numbers_of_pairs(n: int, pairs: int) -> None:
    assert number_of_pairs(n) == pairs
