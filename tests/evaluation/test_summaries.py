# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from bundle.auditing.resampling import Estimate, bootstrap, estimate, mean, patient_draws, share
from bundle.evaluation.summaries import difference, over_seeds, ratio

N, SEEDS, DRAWS = 200, 5, 1000


def figures(values: torch.Tensor) -> list[Estimate]:
    """Means [SEEDS] of values [SEEDS, N], with replicates of the same patients."""
    draws = patient_draws(torch.arange(N), DRAWS, 0)
    return [estimate(mean(row), bootstrap(row, draws, mean), N) for row in values]


def drawn(seed: int) -> torch.Tensor:
    return torch.randn(SEEDS, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_mean_spread_and_interval() -> None:
    values = drawn(0) + torch.arange(SEEDS)[:, None]
    found = over_seeds(figures(values))
    assert found.value == pytest.approx(float(values.mean()))
    assert found.spread == pytest.approx(float(values.mean(dim=1).std()))
    assert found.seeds == pytest.approx(values.mean(dim=1).tolist())
    # The seeds lie 1 apart: their draws make the interval, not the patients.
    assert found.low == pytest.approx(found.value - 1.2, abs=0.35)
    assert found.high == pytest.approx(found.value + 1.2, abs=0.35)


def test_interval_holds_the_truth_as_often_as_it_says() -> None:
    held = 0
    for trial in range(60):
        patients = torch.randn(N, generator=torch.Generator().manual_seed(1000 + trial), dtype=torch.float64)
        found = over_seeds(figures(patients + 0.3 * drawn(trial)))  # the same patients in all seeds
        held += found.low <= 0.0 <= found.high
    assert 50 <= held <= 60


def test_difference_is_paired_by_patient() -> None:
    patients = 10.0 * torch.randn(N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    first, second = figures(patients + drawn(2)), figures(patients + drawn(3) - 0.5)
    found = difference(first, second)
    assert found.value == pytest.approx(0.5, abs=0.1)
    assert 0.0 < found.low < found.value < found.high < 1.0  # each alone has an interval some 2.8 wide
    assert over_seeds(first).high - over_seeds(first).low > 2.0


def test_ratio_is_of_the_means() -> None:
    first, second = figures(drawn(4) + 8.0), figures(drawn(5) + 4.0)
    found = ratio(first, second)
    assert found.value == pytest.approx(np.mean([f.value for f in first]) / np.mean([f.value for f in second]))
    assert 1.8 < found.low < found.value < found.high < 2.2


def test_one_seed_has_no_spread_and_keeps_the_exact_interval_of_none() -> None:
    draws = patient_draws(torch.arange(50), DRAWS, 0)
    found = over_seeds([share(torch.zeros(50, dtype=torch.bool), draws)])
    assert found.value == found.low == 0.0
    assert 0.05 < found.high < 0.08  # Clopper and Pearson: 7.1 %
    assert "spread" not in found.content()


def test_none_in_any_seed_is_not_certainty() -> None:
    draws = patient_draws(torch.arange(50), DRAWS, 0)
    none = [share(torch.zeros(50, dtype=torch.bool), draws)] * 3
    assert over_seeds(none).high > 0.05


def test_what_one_seed_cannot_estimate_is_not_estimated() -> None:
    found = over_seeds([*figures(drawn(0)), Estimate(n=3, reason="there are 3 images")])
    assert found.content() == {"not_estimable": "there are 3 images", "n": N}
