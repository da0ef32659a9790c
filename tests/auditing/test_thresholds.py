# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import torch

from bundle.auditing.measures import exceeds
from bundle.auditing.resampling import DRAWS, patient_draws, share
from bundle.auditing.thresholds import Threshold, share_above


def normal(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def test_interval_covers_other_validation_images() -> None:
    values, draws = normal(2000, 0), patient_draws(torch.arange(2000), DRAWS, 0)
    few = Threshold(normal(100, 1), torch.arange(100), 1)
    found, fixed = share_above(values, draws, few), share(exceeds(values, few.value), draws)
    assert found.value == fixed.value
    assert found.high - found.low > 2 * (fixed.high - fixed.low)
    many = share_above(values, draws, Threshold(normal(20_000, 1), torch.arange(20_000), 1))
    assert many.high - many.low < 0.7 * (found.high - found.low)


def test_share_is_right_as_often_as_its_interval_says() -> None:
    """The threshold is the 95th percentile of 100 images, the truth the share above that of the whole population."""
    held = 0
    for trial in range(60):
        threshold = Threshold(normal(100, 2 * trial), torch.arange(100), 1)
        draws = patient_draws(torch.arange(200), DRAWS, 0)
        found = share_above(normal(200, 2 * trial + 1), draws, threshold)
        held += found.low <= 0.05 <= found.high
    assert held >= 53


def test_validation_patients_are_drawn_whole() -> None:
    values = normal(10, 0).repeat_interleave(10)
    whole, single = (Threshold(values, patients, 0) for patients in (torch.arange(100) // 10, torch.arange(100)))
    assert np.std(whole.replicates) > np.std(single.replicates)


def test_none_above_leaves_room_for_some() -> None:
    threshold = Threshold(normal(100, 0) + 9.0, torch.arange(100), 0)
    found = share_above(normal(50, 1), patient_draws(torch.arange(50), DRAWS, 0), threshold)
    assert found.value == found.low == 0.0
    assert 0.05 < found.high < 0.08  # Clopper and Pearson: 7.1 %
