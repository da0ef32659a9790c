# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest
import torch

from bundle.metrics import reidentification
from bundle.metrics.reidentification import (
    different_images,
    is_proven,
    proof_images,
    recognition_of_others,
    same_images,
)

PATIENTS = [str(number // 2) for number in range(60)]


def similarity(own: float, seed: int = 0) -> torch.Tensor:
    """Noise, raised by ``own`` between the two images of each of 30 patients."""
    noise = torch.randn(60, 60, generator=torch.Generator().manual_seed(seed))
    same = torch.tensor([[one == other for other in PATIENTS] for one in PATIENTS])
    return noise + own * same


def test_other_images_of_patients_are_told_from_those_of_others() -> None:
    similarity = torch.tensor(
        [
            [1.0, 0.9, 0.1, 0.2, 0.0],
            [0.9, 1.0, 0.3, 0.1, 0.2],
            [0.1, 0.3, 1.0, 0.25, 0.6],
            [0.2, 0.1, 0.25, 1.0, 0.1],
            [0.0, 0.2, 0.6, 0.1, 1.0],
        ]
    )
    # Pairs of one patient: 0.9 and 0.25. Above 0.25 are a quarter of the pairs of a and b, and half of those of b and
    # c, of three pairs of patients. The nearest to the first image of b is always that of c.
    found = recognition_of_others(similarity, ["a", "a", "b", "b", "c"])
    assert (found["images"], found["patients"], found["patients_with_several"], found["pairs"]) == (5, 3, 2, 2)
    assert found["auc"]["value"] == pytest.approx((1 + 3 / 4) / 2)
    assert found["first"]["value"] == 0.75
    assert found["found_at_1_percent"]["value"] == 0.5
    assert "auc" not in recognition_of_others(similarity, list("abcde"))
    assert "auc" not in recognition_of_others(similarity, list("aaaaa"))


def test_ties_count_half() -> None:
    found = recognition_of_others(torch.zeros(60, 60), PATIENTS)
    assert found["auc"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert found["found_at_5_percent"]["value"] == found["first"]["value"] == 0.0


def test_a_patient_with_many_images_counts_once() -> None:
    patients = ["a"] * 20 + ["b"] * 2 + ["c"]
    owner = torch.tensor([0] * 20 + [1] * 2 + [2])
    near = ((owner[:, None] == owner) & (owner == 0)).float()  # of a, all pairs are near; of b, none is
    found = recognition_of_others(near, patients)
    assert found["auc"]["value"] == pytest.approx(0.75)
    assert found["first"]["value"] == 0.5


def test_chance_is_no_proof_and_skill_is() -> None:
    chance, skill = (recognition_of_others(similarity(own), PATIENTS) for own in (0.0, 4.0))
    assert chance["auc"]["low"] < 0.5 < chance["auc"]["high"]
    assert not is_proven(chance)
    assert is_proven(skill)
    assert skill["found_at_1_percent"]["value"] > 0.8
    assert json.loads(json.dumps(skill)) == skill == recognition_of_others(similarity(4.0), PATIENTS)


def test_few_patients_or_no_interval_prove_nothing() -> None:
    few = recognition_of_others(similarity(4.0)[:20, :20], PATIENTS[:20])
    assert few["auc"]["low"] > 0.5
    assert not is_proven(few)
    assert not is_proven(None)
    assert not is_proven({"pairs": 45, "auc": 0.99})


def test_a_proof_takes_whole_patients_those_with_several_images_first(monkeypatch: pytest.MonkeyPatch) -> None:
    patients = ["x", "a", "b", "a", "y", "b", "z"]
    assert proof_images(patients, 0) == list(range(7))
    monkeypatch.setattr(reidentification, "MOST_IMAGES", 4)
    assert proof_images(patients, 0) == [1, 2, 3, 5]


def test_the_same_image_at_another_size_is_found() -> None:
    images = torch.nn.functional.interpolate(torch.rand(3, 1, 8, 8), 64, mode="bilinear")
    smaller = torch.nn.functional.interpolate(images[1:2], 48, mode="bilinear", antialias=True) * 0.5 + 0.1
    assert same_images(images, torch.cat([smaller, torch.rand(2, 1, 48, 48)])).tolist() == [False, True, False]


def test_versions_of_an_image_of_one_patient_are_left_out() -> None:
    first, second = torch.rand(2, 1, 1, 48, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images = torch.cat([first, second, 0.8 * first, 0.8 * second, first])
    assert different_images(images, list("aaaab")) == [0, 1, 4]
