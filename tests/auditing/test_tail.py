# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from bundle.auditing.tail import TAIL, false_alarm_bar, tail_correlation


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
