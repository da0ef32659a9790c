# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Singling out, linkability and inference on distances whose risk is known."""

from __future__ import annotations

import pytest
import torch

from bundle.auditing.deep.wp29 import (
    linked,
    read_label,
    risk_attack,
    risk_estimate,
    singled_out,
    singling_radius,
    wilson,
)


def test_exactly_one_patient_within_the_radius_is_singled_out() -> None:
    distances = torch.tensor([[0.1, 0.9, 0.9], [0.1, 0.1, 0.9], [0.1, 0.9, 0.1], [0.9, 0.9, 0.9]])
    patients = torch.tensor([4, 4, 7])  # the first two images are one patient's
    assert singled_out(distances, patients, 0.5).tolist() == [True, True, False, False]


def test_radius_holds_a_validation_image_for_one_synthetic_image_in_twenty() -> None:
    distances = torch.rand(200, 30, generator=torch.Generator().manual_seed(0))
    radius = singling_radius(distances)
    assert float((distances.amin(dim=1) <= radius).double().mean()) == pytest.approx(0.05, abs=0.005)


def test_halves_are_linked_by_a_common_neighbour() -> None:
    left = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]])
    right = torch.tensor([[3.0, 0.5, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    assert linked(left, right, 1).tolist() == [False, True]
    assert linked(left, right, 2).tolist() == [True, True]


def test_label_is_that_of_the_nearest_synthetic_image() -> None:
    distances = torch.tensor([[0.1, 0.2], [0.2, 0.1]])
    assert read_label(distances, torch.tensor([0, 1]), torch.tensor([0, 0])).tolist() == [True, False]


def test_interval_of_a_rate_is_wilsons() -> None:
    centre, width = wilson(0.1, 100)
    assert (centre - width, centre + width) == pytest.approx((0.0552, 0.1744), abs=1e-3)


def test_risk_is_what_is_beyond_the_control() -> None:
    found = risk_estimate(0.6, 0.2, 10**6, 10**6)
    assert found.value == pytest.approx(0.5, abs=1e-3)
    assert found.low < 0.5 < found.high
    assert risk_estimate(0.2, 0.2, 100, 100).low < 0.0 < risk_estimate(0.2, 0.2, 100, 100).high
    assert risk_estimate(0.5, 0.1, 15, 200).withheld


def attack(naive: float | None = None, **changes: float) -> dict[str, bool | None]:
    rates = {"members": 0.5, "unseen": 0.3, "half": 0.31, "other_half": 0.29, "copied": 0.95, **changes}
    found = risk_attack("key", "title", "question", rates, dict.fromkeys(rates, 100), naive)
    return {control.key: control.passed for control in found.controls} | {"usable": found.usable}


def test_controls_of_a_risk_can_fail() -> None:
    assert attack() == {"halves": True, "copied": True, "usable": True}
    assert attack(half=0.7)["halves"] is False
    assert attack(copied=0.3) == {"halves": True, "copied": False, "usable": False}
    assert attack(naive=0.6) == {"halves": True, "copied": True, "naive": False, "usable": False}
