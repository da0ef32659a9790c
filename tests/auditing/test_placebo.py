# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.auditing.placebo import (
    PLACEBO_MEASURES,
    Nearness,
    held_out_comparison,
    held_out_halves,
    placebo_comparisons,
)
from bundle.auditing.reference import EMBEDDING, VERIFIER

SIZES = {"train": 120, "val": 60, "test": 60}
OWN = torch.arange(120)


def points(n: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(n, 16, generator=torch.Generator().manual_seed(seed)))


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bundle.auditing.placebo.DRAWS", 100)
    monkeypatch.setattr("bundle.auditing.placebo.HALVES", 20)


def people(held: dict[str, Tensor]) -> Any:
    """A reference of real images as points: two images of each patient, two classes."""
    real = {
        role: SimpleNamespace(pixels=torch.zeros(n), labels=torch.arange(n) // 2 % 2, patients=torch.arange(n) // 2)
        for role, n in SIZES.items()
    }
    gallery = torch.cat([held["train"], held["test"]])
    return SimpleNamespace(
        real=real,
        points=dict.fromkeys((EMBEDDING, VERIFIER), held),
        compared=lambda name, x: x @ gallery.T,
        lpips=lambda rows, columns: torch.cdist(held[rows], held[columns]),
    )


@pytest.fixture
def reference() -> Any:
    return people({role: points(n, seed) for seed, (role, n) in enumerate(SIZES.items())})


def nearness(x: Tensor, reference: Any) -> Nearness:
    similar = reference.compared(EMBEDDING, x)
    gallery = torch.cat([reference.points[EMBEDDING][role] for role in ("train", "test")])
    return Nearness({EMBEDDING: similar, VERIFIER: similar, "lpips": -torch.cdist(x, gallery)}, torch.arange(len(x)))


def test_other_people_have_no_member_specific_part(reference: Any) -> None:
    found = placebo_comparisons(nearness(points(80, 9), reference), reference, OWN, seed=0)
    assert found.keys() == PLACEBO_MEASURES.keys()
    for value in found.values():
        assert value.difference.low < 0.0 < value.difference.high
        assert value.difference.value == pytest.approx(value.members.value - value.placebo.value)


def test_copies_of_members_have_one_and_copies_of_held_out_images_its_opposite(reference: Any) -> None:
    held = reference.points[EMBEDDING]
    for role, sign in (("train", 1.0), ("test", -1.0)):
        copies = F.normalize(held[role][:60] + 0.05 * points(60, 8))
        found = placebo_comparisons(nearness(copies, reference), reference, OWN, seed=0)
        assert sign * found["copy_rate"].difference.value > 0.2
        assert sign * found["mml"].difference.value < -0.1  # a distance: smaller towards those who were copied
        edge = found["copy_rate"].difference.low if sign > 0 else -found["copy_rate"].difference.high
        assert edge > 0.0


def test_images_far_from_everybody_gain_nothing_over_the_placebo(reference: Any) -> None:
    found = placebo_comparisons(nearness(0.2 * points(80, 7), reference), reference, OWN, seed=0)
    assert found["copy_rate"].members.value == found["copy_rate"].placebo.value == 0.0
    assert found["copy_rate"].members.high == pytest.approx(0.045, abs=0.002)  # binomial: none of 80
    assert found["mml"].members.value == pytest.approx(found["mml"].placebo.value, rel=0.05)


def test_galleries_have_the_classes_of_the_held_out_images(reference: Any) -> None:
    reference.real["train"].labels = (torch.arange(120) >= 100).long()  # 20 of class 1
    found = placebo_comparisons(nearness(points(80, 9), reference), reference, OWN, seed=0)
    assert not found["copy_rate"].members.reason
    few = placebo_comparisons(nearness(points(80, 9), reference), reference, torch.arange(2), seed=0)
    assert "galleries of 2 are too few" in few["copy_rate"].difference.reason


def test_a_cohort_of_few_images_has_none(reference: Any) -> None:
    found = placebo_comparisons(nearness(points(3, 9), reference), reference, OWN, seed=0)
    assert all("3 images" in value.difference.reason for value in found.values())


def test_halves_of_held_out_people_show_nothing_and_those_of_another_source_do(reference: Any) -> None:
    halves = held_out_halves(reference, OWN, seed=0)
    assert all(value.low < 0.0 < value.high for value in halves.values())
    # Held-out people who resemble each other and nobody else are no placebo for these members.
    other = F.normalize(points(1, 6) + 0.3 * points(60, 5))
    apart = people({**reference.points[EMBEDDING], "test": other})
    assert held_out_halves(apart, OWN, seed=0)["mml"].low > 0.0


def test_held_out_images_alone_show_copies_of_members(reference: Any) -> None:
    others = held_out_comparison(nearness(points(80, 9), reference), reference, OWN, seed=0)
    assert others.keys() == PLACEBO_MEASURES.keys() and abs(others["copy_rate"]) < 0.1
    copies = F.normalize(reference.points[EMBEDDING]["train"][:80] + 0.05 * points(80, 9))
    found = held_out_comparison(nearness(copies, reference), reference, OWN, seed=0)
    assert found["copy_rate"] > 0.15 and found["mml"] < others["mml"]


def test_too_few_held_out_images_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"train": points(120, 0), "val": points(60, 1), "test": points(60, 2)[:16]}
    monkeypatch.setitem(SIZES, "test", 16)
    with pytest.raises(ValueError, match="too few for a placebo"):
        held_out_comparison(nearness(points(80, 9), people(few)), people(few), OWN, seed=0)


def test_no_percentile_of_few_images_is_published(reference: Any) -> None:
    found = placebo_comparisons(nearness(points(40, 9), reference), reference, OWN, seed=0)
    assert found.keys() == PLACEBO_MEASURES.keys()
    for key, value in found.items():
        is_percentile = key in ("dcr_p5", "lpips_p5")
        assert bool(value.members.reason) == bool(value.difference.reason) == is_percentile
    assert found["dcr_p5"].members.reason == "a 5th percentile needs at least 50 images; there are 40"
