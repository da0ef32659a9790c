# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from bundle.auditing.resampling import LEAST, Estimate, bootstrap, estimate, half_samples, patient_draws, share


def test_patients_are_drawn_with_all_their_images() -> None:
    patients = torch.tensor([5, 5, 2, 2, 2, 9])
    for draw in patient_draws(patients, 50, 0):
        drawn = patients[torch.from_numpy(draw)]
        counts = [int((drawn == patient).sum()) for patient in (5, 2, 9)]
        assert counts[0] % 2 == 0
        assert counts[1] % 3 == 0
        assert counts[0] // 2 + counts[1] // 3 + counts[2] == 3
    again = patient_draws(patients, 50, 0)
    assert all(np.array_equal(a, b) for a, b in zip(again, patient_draws(patients, 50, 0), strict=True))
    assert len({draw.tobytes() for draw in again}) > 5


def test_images_of_one_patient_widen_the_interval() -> None:
    marked = torch.arange(200) % 20 < 10
    alone = share(marked, patient_draws(torch.arange(200), 1000, 0))
    families = share(marked, patient_draws(torch.arange(200) // 10, 1000, 0))
    assert alone.value == families.value == 0.5
    assert families.high - families.low > 2 * (alone.high - alone.low)


def test_interval_of_a_mean_is_about_that_of_the_normal_distribution() -> None:
    values = torch.from_numpy(np.random.default_rng(0).normal(0, 1, 400))
    draws = patient_draws(torch.arange(400), 1000, 1)
    found = estimate(float(values.mean()), bootstrap(values, draws, lambda drawn: float(drawn.mean())), 400)
    assert found.high - found.low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    assert found.low < found.value < found.high


def test_share_of_none_leaves_room_for_some() -> None:
    found = share(torch.zeros(100, dtype=torch.bool), patient_draws(torch.arange(100), 10, 0))
    assert found.value == found.low == 0.0
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 100))


def test_halves_share_no_patient_and_nobody_is_twice_in_one() -> None:
    patients = torch.tensor([0, 0, 0, 1, 2, 2, 3, 4, 5, 5, 6, 7])
    for seed in range(20):
        first, second = half_samples(patients, 5, np.random.default_rng(seed))
        assert not set(patients[first].tolist()) & set(patients[second].tolist())
        assert len(set(first.tolist())) == len(first) <= 5
        assert len(set(second.tolist())) == len(second) <= 5
        assert len(first) >= 4 or len(second) >= 4


def test_figures_are_written_with_four_digits_or_a_reason() -> None:
    assert Estimate(0.123456, 0.1, 0.2, LEAST).content() == {"value": 0.1235, "low": 0.1, "high": 0.2, "n": LEAST}
    assert Estimate(reason="too few", n=3).content() == {"not_estimable": "too few", "n": 3}


def test_a_figure_of_few_images_is_withheld() -> None:
    content = Estimate(0.1146, 0.1146, 0.1146, LEAST - 1).content()
    assert content.keys() == {"not_estimable", "n"}
    assert "fewer than 20 images would tell of single ones; there are 19" in content["not_estimable"]


def test_sets_with_the_same_numbers_are_drawn_alike() -> None:
    whole, part = torch.arange(12), torch.tensor([3, 3, 7, 10])
    for all_of_them, some in zip(patient_draws(whole, 40, 0, 12), patient_draws(part, 40, 0, 12), strict=True):
        times = np.bincount(all_of_them, minlength=12)
        if times[[3, 7, 10]].any():
            assert np.bincount(some, minlength=4).tolist() == [times[3], times[3], times[7], times[10]]
    assert all(len(draw) for draw in patient_draws(torch.tensor([5]), 100, 0, 40))
