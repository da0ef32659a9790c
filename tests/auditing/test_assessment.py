# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from bundle.auditing.assessment import COLUMNS, fidelity
from bundle.auditing.distances import EMBEDDING


def distances_of(patients: Tensor) -> SimpleNamespace:
    """As many images on every side, of patients with these numbers, in random features."""
    torch.manual_seed(0)
    features = {role: torch.rand(len(patients), 4) for role in ("cohort", "train", "test")}
    return SimpleNamespace(
        reference=SimpleNamespace(features=features, points={EMBEDDING: features}),
        rows={"features": features["cohort"], "point": features["cohort"]},
        real={role: SimpleNamespace(patients=patients) for role in ("train", "test")},
    )


def test_all_draws_and_columns_of_fidelity_have_as_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr("bundle.auditing.assessment.HALVES", 20)

    def kid(x: Tensor, y: Tensor) -> float:
        sizes.extend((len(x), len(y)))
        return 0.0

    monkeypatch.setattr("bundle.auditing.assessment.kid", kid)
    family = torch.arange(60).clamp_min(7)  # eight images of one patient, who makes a half smaller where it is cut
    found = fidelity(distances_of(family), 0.9, {}, seed=3)  # type: ignore[arg-type]
    assert len(sizes) == 20 * 3 * 2
    assert len(set(sizes)) == 1
    assert {found["kid"][column].n for column in COLUMNS} == set(sizes)
    assert sizes[0] < 30


def test_halves_that_a_family_makes_too_small_are_no_estimate() -> None:
    family = torch.arange(60).clamp_min(45)  # 46 images of one patient: a half has 14 at most
    found = fidelity(distances_of(family), 0.9, {}, seed=0)  # type: ignore[arg-type]
    for column in COLUMNS:
        assert "at least 20 images are compared" in found["kid"][column].reason
