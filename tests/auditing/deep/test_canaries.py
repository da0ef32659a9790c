# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Canaries and their exposure."""

from __future__ import annotations

import pytest
import torch

from bundle.auditing.deep.canaries import REPEATS, chance_exposures, exposures, inserted, make_canaries
from bundle.auditing.deep.findings import CANARY_SPACES, canary_attack
from bundle.auditing.deep.shadows import Pool

N = 20


@pytest.fixture
def val() -> Pool:
    pixels = torch.randint(256, (30, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Pool(pixels, torch.arange(30) % 2, torch.arange(30) // 2)


def test_canaries_differ_from_every_patient_and_from_each_other(val: Pool) -> None:
    found = make_canaries(val, N, 0)
    assert len(found.pixels) == 14 * N
    assert len({image.numpy().tobytes() for image in found.pixels}) == 14 * N
    assert found.pixels.shape[1:] == val.pixels.shape[1:]
    assert torch.equal(found.labels[:60], val.labels.repeat(2))
    assert torch.equal(found.pixels, make_canaries(val, N, 0).pixels)
    assert not torch.equal(found.pixels, make_canaries(val, N, 1).pixels)


def test_colour_images_get_marks_too() -> None:
    pixels = torch.full((20, 32, 32, 3), 100, dtype=torch.uint8)
    found = make_canaries(Pool(pixels, torch.zeros(20).long(), torch.arange(20)), N, 0).pixels
    assert found.shape == (14 * N, 32, 32, 3)
    assert int((found[0] == 255).all(dim=-1).sum()) % 4 == 0  # whole cells of 2 x 2 pixels


def test_each_canary_is_inserted_as_often_as_its_level_says(val: Pool) -> None:
    found = inserted(make_canaries(val, N, 0), N)
    counts: dict[bytes, int] = {}
    for image in found.pixels:
        counts[image.numpy().tobytes()] = counts.get(image.numpy().tobytes(), 0) + 1
    assert sorted(counts.values()) == [times for times in REPEATS[1:] for _ in range(N)]


def test_exposure_counts_the_bits_of_the_rank() -> None:
    by_chance = []
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        scores = torch.randn(14 * N, generator=random)
        scores[3 * N : 4 * N] += 50.0
        found = exposures(scores, torch.randn(3, 14 * N, generator=random), N)
        assert found.shape == (len(REPEATS), N)
        assert found[3].tolist() == pytest.approx([7.651] * N, abs=1e-3)  # log2 of 201
        by_chance.append(float(found[:3].mean()))
    assert sum(by_chance) / 20 == pytest.approx(chance_exposures(N)[0], abs=0.15)
    mean, low, high = chance_exposures(N)
    assert mean == pytest.approx(1.44, abs=0.05)
    assert 0.6 < low < 0.9
    assert 2.2 < high < 2.8
    assert sum(low <= value <= high for value in by_chance) >= 19


def test_canaries_that_any_generator_comes_near_to_are_not_exposed() -> None:
    random = torch.Generator().manual_seed(0)
    easy = 3.0 * torch.randn(14 * N, generator=random)
    easy[3 * N : 4 * N] += 3.0
    noise = torch.randn(4, 14 * N, generator=random)
    assert float(exposures(easy + noise[0], easy + noise[1:], N)[3].mean()) < 2.2
    assert float(exposures(easy + noise[0], noise[1:], N)[3].mean()) > 2.5


def report(never: float) -> dict[str, bool | None]:
    random = torch.Generator().manual_seed(0)
    scores = torch.randn(14 * N, generator=random)
    scores[:N] += never
    scores[3 * N : 4 * N] += 5.0
    others = torch.randn(4, 14 * N, generator=random)
    patients = torch.arange(14 * N) % 30
    attack = canary_attack(dict.fromkeys(CANARY_SPACES, scores), dict.fromkeys(CANARY_SPACES, others), patients, N, 0)
    rows = {row.key: row.estimate for row in attack.rows}
    assert list(rows) == [f"{space}_{times}" for space in CANARY_SPACES for times in REPEATS[1:]]
    assert rows["lpips_16"].low > rows["lpips_1"].high
    return {control.key: control.passed for control in attack.controls}


def test_canaries_that_were_never_inserted_are_the_control() -> None:
    assert set(report(0.0).values()) == {True}
    assert set(report(5.0).values()) == {False}
