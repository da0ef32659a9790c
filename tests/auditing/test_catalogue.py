# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from bundle.auditing.catalogue import MEASURES, with_proof

ON_THE_VERIFIER = ("reidentified", "reidentification_auc", "same_patient_named", "other_images")


def proof(low: float, patients: int = 134) -> dict[str, Any]:
    ends = {"value": 0.859, "low": low, "high": 0.886}
    return {
        "patients": 262,
        "patients_with_several": patients,
        "auc": ends,
        "found_at_1_percent": ends,
        "found_at_5_percent": ends,
    }


def test_proof_stands_beside_the_rows_that_rest_on_the_verifier() -> None:
    found = with_proof(MEASURES, {"scores": {"other_images": proof(0.831)}})
    for key, measure in found.items():
        if key in ON_THE_VERIFIER:
            assert "proven: AUC 0.86 [0.83, 0.89] on other images of 134 of 262 held-out patients" in measure.space
            assert "86% [83%, 89%] are found at 1 % false alarms" in measure.space
        else:
            assert measure == MEASURES[key]


@pytest.mark.parametrize(
    ("verifier", "lacking"),
    [
        ({}, "no measurement with an interval"),
        ({"scores": {"other_images": {"pairs": 45, "auc": 0.985}}}, "no measurement with an interval"),
        ({"scores": {"other_images": proof(0.49)}}, "AUC 0.86 [0.49, 0.89]"),
        ({"scores": {"other_images": proof(0.831, patients=19)}}, "19 of 262"),
    ],
)
def test_without_proof_the_rows_are_only_about_copies(verifier: dict[str, Any], lacking: str) -> None:
    found = with_proof(MEASURES, verifier)
    for key in ON_THE_VERIFIER:
        assert "not proven on other images of a patient" in found[key].space
        assert "so this row is only about copies" in found[key].space
        assert lacking in found[key].space
