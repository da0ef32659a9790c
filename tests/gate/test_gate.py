# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from bundle.gate.gate import Gate


class Fixed(nn.Module):
    """Answers with given probabilities, one row for each image."""

    def __init__(self, probabilities: list[list[float]]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log())

    def forward(self, images: Tensor) -> Tensor:
        return self.logits[: len(images)]


IDENTITY = [[0.5, 0.3, 0.2], [0.81, 0.1, 0.09], [0.79, 0.2, 0.01], [0.9, 0.05, 0.05]]
CLASS = [[0.4, 0.6], [0.4, 0.6], [0.6, 0.4], [0.9, 0.1]]
IMAGES = torch.zeros(4, 1, 8, 8)


def test_verdicts_by_hand() -> None:
    verdict = Gate(Fixed(IDENTITY), Fixed(CLASS), threshold=0.8)(IMAGES, 1)
    assert verdict.recognised.tolist() == [False, True, False, True]
    assert verdict.mislabelled.tolist() == [False, False, True, True]
    assert verdict.passed.tolist() == [True, False, False, False]
    assert not verdict.passed.requires_grad


def test_label_is_what_is_compared() -> None:
    verdict = Gate(Fixed(IDENTITY), Fixed(CLASS), threshold=0.8)(IMAGES, 0)
    assert verdict.mislabelled.tolist() == [True, True, False, False]
    assert verdict.passed.tolist() == [False, False, True, False]


def test_threshold_of_one_recognises_nobody() -> None:
    sure = Fixed([[1.0, 0.0]] * 4)
    assert Gate(sure, Fixed(CLASS), threshold=1.0)(IMAGES, 1).recognised.tolist() == [False] * 4
    assert Gate(sure, Fixed(CLASS), threshold=0.999)(IMAGES, 1).recognised.tolist() == [True] * 4


def test_any_patient_counts() -> None:
    verdict = Gate(Fixed([[0.05, 0.9, 0.05]] * 4), Fixed(CLASS), threshold=0.8)(IMAGES, 1)
    assert verdict.recognised.all()


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.01, math.nan])
def test_impossible_threshold_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"probability in \(0, 1\].*Train the gate networks anew"):
        Gate(Fixed(IDENTITY), Fixed(CLASS), threshold)


def test_an_answer_that_is_no_number_does_not_pass() -> None:
    """Whatever is broken must not open the gate."""
    broken = Fixed(IDENTITY)
    with torch.no_grad():
        broken.logits[0] = math.nan
    assert Gate(broken, Fixed(CLASS), threshold=0.8)(IMAGES, 1).passed.tolist() == [False] * 4
