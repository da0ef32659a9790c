# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bundle.auditing.measures import area_under_curve
from bundle.evaluation.membership import (
    attack_by_outputs,
    confidence,
    likelihood_ratios,
    random_halves,
    ratio_estimates,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_confidence_is_the_logit_of_the_right_class() -> None:
    logits, labels = random(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    p = logits.softmax(dim=1)[torch.arange(6), labels]
    torch.testing.assert_close(confidence(logits, labels), (p / (1 - p)).log())
    assert confidence(torch.tensor([[90.0, -90.0]]), torch.tensor([0])).item() == pytest.approx(180.0)  # no overflow


def test_halves_keep_patients_whole_and_come_with_complements() -> None:
    patients = torch.arange(40) // 2
    halves = random_halves(patients, 6, 0)
    assert torch.equal(halves.sum(dim=0), torch.full((40,), 3))
    assert torch.equal(halves[0], ~halves[1])
    assert torch.equal(halves[:, ::2], halves[:, 1::2])
    assert not torch.equal(halves, random_halves(patients, 6, 1))
    for number in (2, 5):
        with pytest.raises(ValueError, match="even number of 4 or more"):
            random_halves(patients, number, 0)


def shadow_models(n: int, gain: float) -> tuple[Tensor, Tensor, Tensor]:
    """Difficulties of n images, confidences of 16 shadow models, and what these were trained on."""
    difficulty = 3.0 * random(n, seed=1)
    trained_on = random_halves(torch.arange(n), 16, 2)
    return difficulty, difficulty + gain * trained_on + random(16, n, seed=3), trained_on


def test_likelihood_ratio_finds_members_by_what_is_unusual_for_the_image() -> None:
    difficulty, shadows, trained_on = shadow_models(400, gain=2.0)
    members = torch.arange(400) < 200
    target = difficulty + 2.0 * members + random(400, seed=4)
    scores = likelihood_ratios(target, shadows, trained_on)
    by_ratio = area_under_curve(scores[members], scores[~members])
    assert by_ratio > 0.88  # two normal distributions 2 apart: 0.92
    assert by_ratio > 0.15 + area_under_curve(target[members], target[~members])
    # Transferred to a classifier that answers on another scale, it finds the same.
    other = likelihood_ratios(0.1 * target - 7.0, shadows, trained_on)
    torch.testing.assert_close(other, scores)


def test_likelihood_ratio_finds_nothing_where_there_is_nothing() -> None:
    difficulty, shadows, trained_on = shadow_models(400, gain=2.0)
    members = torch.arange(400) < 200
    scores = likelihood_ratios(difficulty + random(400, seed=5), shadows, trained_on)
    found = ratio_estimates(scores[members], scores[~members], torch.arange(200), torch.arange(200))
    assert found["lira_auc"].low < 0.5 < found["lira_auc"].high
    assert found["lira_tpr"].value < 0.05


def test_too_few_for_an_attack_is_said() -> None:
    scores = random(200)
    few = ratio_estimates(scores, scores[:19], torch.arange(200), torch.arange(19))
    assert "at least 20 members and as many others; there are 19" in few["lira_auc"].reason
    some = ratio_estimates(scores, scores[:60], torch.arange(200), torch.arange(60))
    assert not some["lira_auc"].reason
    assert "1 % of 60 test images is less than one image" in some["lira_tpr"].reason


def answers(n: int, surer: float, seed: int) -> tuple[Tensor, Tensor]:
    """Logits of n images of two classes, and their labels."""
    labels = torch.arange(n) % 2
    logits = random(n, 2, seed=seed)
    logits[torch.arange(n), labels] += surer
    return logits, labels


@pytest.mark.parametrize(("surer", "least", "most"), [(6.0, 0.9, 1.0), (0.0, 0.4, 0.6)])
def test_attack_by_outputs_finds_members_where_the_classifier_is_surer_of_them(
    surer: float, least: float, most: float
) -> None:
    (mine, my_labels), (others, other_labels) = answers(300, surer, 0), answers(120, 0.0, 1)
    patients = (torch.arange(300), torch.arange(120))
    found = attack_by_outputs((mine, others), (my_labels, other_labels), patients, seed=0)["mia_accuracy"]
    assert least <= found.value <= most
    assert found.low < found.value < found.high
    assert found.n == 240  # as many members as others


def test_attack_does_not_learn_a_patient_by_heart() -> None:
    """Ten images of each patient, all alike: without folds by patient the attack would know them again."""
    patients = torch.arange(100) // 10
    logits = random(20, 2, seed=7).repeat_interleave(10, dim=0)
    labels = torch.zeros(100, dtype=torch.int64)
    found = attack_by_outputs((logits[:100], logits[100:]), (labels, labels), (patients, patients), seed=0)
    assert found["mia_accuracy"].value < 0.75


def test_attack_by_outputs_needs_images() -> None:
    logits, labels = answers(30, 0.0, 0)
    found = attack_by_outputs((logits, logits[:10]), (labels, labels[:10]), (torch.arange(30), torch.arange(10)), 0)
    assert "there are 10" in found["mia_accuracy"].reason
