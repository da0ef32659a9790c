# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from bundle.auditing.resampling import Estimate, bootstrap, estimate, mean, patient_draws, share
from bundle.evaluation.summaries import difference, offsets, over_seeds, ratio

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
    # The seeds lie 1 apart: they make the interval, not the patients; 2.776 is Student's quantile of 4 degrees.
    half = 2.776 * found.spread / np.sqrt(SEEDS)
    assert found.low == pytest.approx(found.value - half, abs=0.1)
    assert found.high == pytest.approx(found.value + half, abs=0.1)


@pytest.mark.parametrize(
    ("seed_effect", "patient_noise", "path_noise"),
    [(1.0, 0.01, 0.0), (1.0, 1.0, 0.0), (0.3, 1.0, 0.0), (0.0, 0.01, 1.0), (1.0, 1.0, 1.0)],
    ids=["seeds", "seeds and patients", "mostly patients", "paths", "all"],
)
def test_interval_holds_the_truth_as_often_as_it_says(
    seed_effect: float, patient_noise: float, path_noise: float
) -> None:
    trials, n, draws = 1200, 100, 150
    random = np.random.default_rng(0)
    held = 0
    for _ in range(trials):
        of_patients = patient_noise * np.sqrt(n) * random.normal(size=n)  # the same patients in all seeds
        of_paths = path_noise * np.sqrt(n) * random.normal(size=(SEEDS, n))
        values = seed_effect * random.normal(size=(SEEDS, 1)) + of_patients + of_paths
        times = random.multinomial(n, np.full(n, 1 / n), size=draws)
        low, high = offsets(values.mean(axis=1), values @ times.T / n) + values.mean()
        held += low <= 0.0 <= high
    assert 0.93 <= held / trials <= 0.97


def test_seeds_that_agree_by_chance_have_an_interval() -> None:
    draws = patient_draws(torch.arange(N), DRAWS, 0)
    shares = [share(torch.arange(N) % 10 == number, draws) for number in range(2)]  # other images, the same share
    found = over_seeds(shares)
    assert found.spread == 0.0
    assert found.low < found.value < found.high


def test_interval_ends_at_the_limits() -> None:
    values = [Estimate(value, replicates=np.full(10, value)) for value in (0.0, 0.01, 0.05)]
    assert over_seeds(values).low < 0.0
    assert over_seeds(values, (0.0, 1.0)).low == 0.0


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


def test_ratio_to_nothing_is_not_estimated() -> None:
    assert "not above 0" in ratio(figures(drawn(0) + 8.0), figures(drawn(1) - 1.0)).reason
