# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bundle.data import open_dataset
from bundle.data.shortcut import (
    border_pixels,
    measure_shortcut,
    random_trunk_features,
    shortcut_baseline,
    whole_image_statistics,
)

STATISTICS = ["mean", "deviation", *(f"percentile {p}" for p in (1, 5, 25, 50, 75, 95, 99))]
STATISTICS += ["share of black", "share of white", "border mean", "border minus centre", "sharpness"]


def test_statistics_of_a_picture_that_can_be_worked_out() -> None:
    images = torch.full((1, 1, 24, 24), -1.0)
    images[..., 2:-2, 2:-2] = 0.5  # the border, a twelfth of each side, is black
    row = dict(zip(STATISTICS, whole_image_statistics(images)[0], strict=True))
    black = (24**2 - 20**2) / 24**2
    assert row["share of black"] == pytest.approx(black)
    assert row["share of white"] == 0
    assert row["mean"] == pytest.approx(0.5 - 1.5 * black)
    assert row["border mean"] == -1
    assert row["border minus centre"] == -1.5
    assert row["percentile 50"] == 0.5
    # 20 of 24 rows (and columns) cross the edge twice, a step of 1.5 each, among 23 neighbours
    assert row["sharpness"] == pytest.approx(20 * 2 * 1.5 / (24 * 23))


def test_a_letter_at_the_edge_is_seen_and_one_in_the_middle_is_not() -> None:
    images = torch.rand(60, 1, 48, 48, generator=torch.Generator().manual_seed(0)) - 0.5
    assert border_pixels(images).shape == (60, 176)
    labels = [i % 2 for i in range(60)]
    middle, edge = images.clone(), images.clone()
    middle[1::2, :, 20:28, 20:28] = 1.0
    edge[1::2, :, 0:4, 40:44] = 1.0
    np.testing.assert_array_equal(border_pixels(middle), border_pixels(images))
    scores = shortcut_baseline(border_pixels(edge), labels, range(60), seeds=(0,))
    assert all(score.mean > 0.99 for score in scores.values())


def test_a_label_that_follows_brightness_is_found_and_a_random_one_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(120, 1, 24, 24, generator=generator) - 0.5
    labels = [i % 2 for i in range(120)]
    images[1::2] += 0.2
    features = whole_image_statistics(images)
    told = shortcut_baseline(features, labels, range(120), seeds=(0,))
    assert set(told) == {"gradient boosting", "logistic"}
    assert all(score.mean > 0.99 for score in told.values())
    random = np.random.default_rng(0).permutation(labels).tolist()
    guessed = shortcut_baseline(features, random, range(120), seeds=(0, 1))
    assert all(0.3 < score.mean < 0.7 and score.spread > 0 for score in guessed.values())


def test_a_patient_is_never_on_both_sides_of_a_fold() -> None:
    """Each patient has a signature and a random label: only a leak between folds could tell it."""
    rng = np.random.default_rng(0)
    signatures = rng.normal(size=(60, 5))
    labels = rng.permutation([0, 1] * 30)
    patients = np.repeat(np.arange(60), 4)
    scores = shortcut_baseline(signatures[patients], labels[patients].tolist(), patients.tolist(), seeds=(0,))
    assert scores["gradient boosting"].mean < 0.7


def test_a_random_trunk_depends_on_its_seed_alone() -> None:
    images = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    before = torch.random.get_rng_state()
    features = random_trunk_features(images)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert features.shape == (3, 512)
    np.testing.assert_array_equal(features, random_trunk_features(images))
    assert not np.allclose(features, random_trunk_features(images, seed=1))


def test_every_preprocessing_is_measured(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    data = open_dataset(make_folder(), tmp_path / "output", resolution=32)
    table = measure_shortcut(data, seeds=(0,))
    assert list(table) == ["plain", "crop", "histogram", "crop_histogram"]
    for row in table.values():
        kinds = [f"{seen}, {kind}" for seen in ("statistics", "border") for kind in ("gradient boosting", "logistic")]
        assert list(row) == [*kinds, "random trunk, logistic"]
        assert all(0 <= score.mean <= 1 and score.spread == 0 for score in row.values())
