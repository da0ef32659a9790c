# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from bundle.auditing.thresholds import Threshold
from bundle.evaluation.distinct import DRAWN, distinct_estimate, distinct_images, half_of_groups


def test_one_of_each_cluster_counts() -> None:
    clusters = np.array([0, 0, 0, 1, 2, 2])
    assert distinct_images(clusters[:, None] == clusters) == 3
    assert distinct_images(np.eye(5, dtype=bool)) == 5
    assert distinct_images(np.ones((5, 5), dtype=bool)) == 1


def test_middle_of_a_chain_is_not_kept_at_the_cost_of_both_ends() -> None:
    chain = np.abs(np.subtract.outer(np.arange(3), np.arange(3))) < 2
    assert distinct_images(chain) == 2


def points_of(clusters: torch.Tensor) -> torch.Tensor:
    """Unit vectors, the same for images of one cluster."""
    directions = torch.randn(int(clusters.max()) + 1, 64, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(directions, dim=1)[clusters]


@pytest.mark.parametrize(("n_clusters", "least", "most"), [(400, 64, 64), (40, 30, 34), (1, 1, 1)])
def test_number_is_that_of_the_clusters_among_the_drawn(n_clusters: int, least: float, most: float) -> None:
    clusters = torch.arange(400) % n_clusters
    threshold = Threshold(0.8 + torch.rand(100) * 0.1, torch.arange(100), 0)
    found = distinct_estimate(points_of(clusters), clusters, None, threshold, 0)
    assert least <= found.value <= most
    assert found.low <= found.value <= found.high
    assert found.n == 400


def test_too_few_images_are_not_estimated() -> None:
    clusters = torch.arange(2 * DRAWN - 1)
    threshold = Threshold(torch.rand(50), torch.arange(50), 0)
    assert "there are 127 images" in distinct_estimate(points_of(clusters), clusters, None, threshold, 0).reason


def test_half_of_the_groups_is_the_same_in_sets_with_the_same_numbers() -> None:
    groups = torch.arange(40) // 4
    half = half_of_groups(groups, 10, np.random.default_rng(3))
    assert len(half) == 20
    assert len(groups[half].unique()) == 5
    again = half_of_groups(groups.flip(0), 10, np.random.default_rng(3))
    assert set(groups.flip(0)[again].tolist()) == set(groups[half].tolist())
