# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from bundle.auditing.tail import TAIL, bars_without, false_alarm_bar, odd_patients, tail_correlation


def correlations(n: int, seed: int) -> torch.Tensor:
    """Correlations whose Fisher's z is normal: a tail a little shorter than an exponential one."""
    return torch.from_numpy(np.tanh(0.9 + 0.2 * np.random.default_rng(seed).standard_normal(n)))


@pytest.mark.parametrize("n_images", [64, 500, 1000])
def test_stated_false_alarms_hold_at_every_size_of_a_cohort(n_images: int) -> None:
    alarms = 0
    for seed in range(300):
        bar = tail_correlation(correlations(300, seed), n_images, 0.05)
        alarms += bool((correlations(n_images, 10_000 + seed) > bar).any())
    assert alarms <= 20  # 15 would be expected if the tail were exponential


def test_larger_cohorts_and_fewer_false_alarms_ask_for_more() -> None:
    values = correlations(300, 0)
    small, large = (tail_correlation(values, n, 0.01) for n in (64, 1000))
    assert small < large < tail_correlation(values, 1000, 0.001) < 1.0


def test_range_tells_what_one_patient_does() -> None:
    values = torch.cat([correlations(300, 1), torch.tensor([0.999])])
    bar = false_alarm_bar(values, torch.arange(301), 100, 0.01)
    without = tail_correlation(values[:300], 100, 0.01)
    assert bar.low == pytest.approx(without)
    assert bar.low < bar.value <= bar.high
    assert bar.n == round(TAIL * 301)


def test_an_exact_copy_among_held_out_images_leaves_numbers() -> None:
    values = torch.cat([correlations(300, 2), torch.ones(1)])
    assert 0.0 < false_alarm_bar(values, torch.arange(301), 100, 0.01).value <= 1.0


@pytest.mark.parametrize("odd", [[], [2.9], [2.7, 2.8, 2.9]])
def test_odd_patients_are_found_even_if_there_are_several(odd: list[float]) -> None:
    values = torch.cat([correlations(300, 3), torch.tensor(odd, dtype=torch.float64).tanh()])
    patients = torch.arange(len(values)) + 7
    assert odd_patients(values, patients).tolist() == list(range(307, 307 + len(odd)))


def test_hardly_any_patient_is_called_odd_where_none_is() -> None:
    found = [len(odd_patients(correlations(300, seed), torch.arange(300))) for seed in range(100)]
    assert sum(found) <= 2


def test_bars_without_each_patient_are_those_of_the_rest() -> None:
    values, patients = correlations(60, 4), torch.arange(60) // 2
    without = bars_without(values, patients, 100, 0.01)
    assert float(without[3]) == tail_correlation(values[patients != 3], 100, 0.01)
    assert len(without) == 30
