# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bundle.evaluation.pools import PoolMaker, evaluation_models
from bundle.evaluation.walkers import inner_point
from bundle.walk.objective import BalancedObjective, PublishedObjective
from bundle.walk.path import WalkSettings


@pytest.fixture(scope="module")
def maker(toy_models: Path) -> PoolMaker:
    models = evaluation_models(str(toy_models), "cpu")
    settings = WalkSettings(steps=3)
    return PoolMaker(models, 5, 6, 2, 0, BalancedObjective(), settings, PublishedObjective(), settings)


def test_inner_points_are_spread_evenly_and_never_ends() -> None:
    points = torch.tensor([inner_point(0, 1, pair, 10) for pair in range(800)])
    counts = points.bincount(minlength=10)
    assert counts[0] == counts[9] == 0
    assert counts[1:9].min() > 60
    assert inner_point(0, 0, 5, 3) == 1


@pytest.mark.parametrize(("whole", "single"), [("lines", "line_points"), ("walks", "walk_points")])
def test_one_point_of_the_same_path_is_kept(maker: PoolMaker, whole: str, single: str) -> None:
    paths, points = (maker.make(pool, 0, 1, range(4, 10)) for pool in (whole, single))
    assert points["pairs"].tolist() == list(range(4, 10))
    for row, pair in enumerate(range(4, 10)):
        expected = paths["pixels"][paths["pairs"] == pair][inner_point(0, 1, pair, 5)]
        assert (points["pixels"][row].int() - expected.int()).abs().max() <= 1  # other blocks may round otherwise
    assert bool((points["cpu_seconds"] > 0).all())


def test_paths_of_two_points_get_an_inner_one(toy_models: Path) -> None:
    models, settings = evaluation_models(str(toy_models), "cpu"), WalkSettings(steps=1)
    maker = PoolMaker(models, 2, 6, 2, 0, BalancedObjective(), settings, PublishedObjective(), settings)
    assert len(maker.make("line_points", 0, 0, range(3))["pixels"]) == 3
