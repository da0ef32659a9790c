# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from bundle.gate.gate import Gate
from bundle.networks.realism import RealismJudge

NEAR = [1.0, 1.0, 1.0, 1.0]


class Fixed(nn.Module):
    """Answers with given probabilities, one row for each image."""

    def __init__(self, probabilities: list[list[float]]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log())

    def forward(self, images: Tensor) -> Tensor:
        return self.logits[: len(images)]


class Distances(RealismJudge):
    """Answers with given distances, whatever the class."""

    def __init__(self, distances: list[float]) -> None:
        super().__init__(2, 1)
        self.distances = torch.tensor(distances)

    def features(self, images: Tensor) -> Tensor:
        return self.distances[: len(images), None].expand(-1, len(self.deviation))

    def distance(self, features: Tensor, label: int) -> Tensor:
        return features[:, 0]


def gate(identity: nn.Module, threshold: float, distances: list[float] = NEAR, farthest: float = 2.0) -> Gate:
    return Gate(identity, Fixed(CLASS), Distances(distances), threshold, farthest)


IDENTITY = [[0.5, 0.3, 0.2], [0.81, 0.1, 0.09], [0.79, 0.2, 0.01], [0.9, 0.05, 0.05]]
CLASS = [[0.4, 0.6], [0.4, 0.6], [0.6, 0.4], [0.9, 0.1]]
IMAGES = torch.zeros(4, 1, 8, 8)


def test_verdicts_by_hand() -> None:
    verdict = gate(Fixed(IDENTITY), 0.8)(IMAGES, 1)
    assert verdict.recognised.tolist() == [False, True, False, True]
    assert verdict.mislabelled.tolist() == [False, False, True, True]
    assert verdict.passed.tolist() == [True, False, False, False]
    assert not verdict.passed.requires_grad


def test_label_is_what_is_compared() -> None:
    verdict = gate(Fixed(IDENTITY), 0.8)(IMAGES, 0)
    assert verdict.mislabelled.tolist() == [True, True, False, False]
    assert verdict.passed.tolist() == [False, False, True, False]


def test_threshold_of_one_recognises_nobody() -> None:
    sure = Fixed([[1.0, 0.0]] * 4)
    assert gate(sure, 1.0)(IMAGES, 1).recognised.tolist() == [False] * 4
    assert gate(sure, 0.999)(IMAGES, 1).recognised.tolist() == [True] * 4


def test_any_patient_counts() -> None:
    verdict = gate(Fixed([[0.05, 0.9, 0.05]] * 4), 0.8)(IMAGES, 1)
    assert verdict.recognised.all()


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.01, math.nan])
def test_impossible_threshold_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"probability in \(0, 1\].*Train the gate networks anew"):
        gate(Fixed(IDENTITY), threshold)


def test_an_answer_that_is_no_number_does_not_pass() -> None:
    """Whatever is broken must not open the gate."""
    broken = Fixed(IDENTITY)
    with torch.no_grad():
        broken.logits[0] = math.nan
    assert gate(broken, 0.8)(IMAGES, 1).passed.tolist() == [False] * 4


def test_images_far_from_real_ones_do_not_pass() -> None:
    distances = [1.0, 2.0, 2.01, math.nan]
    verdict = gate(Fixed([[0.5, 0.5]] * 4), 0.8, distances)(IMAGES, 0)
    assert verdict.unrealistic.tolist() == [False, False, True, True]
    assert verdict.passed.tolist() == [False, False, False, False]
    assert gate(Fixed([[0.5, 0.5]] * 4), 0.8, distances)(IMAGES, 1).passed.tolist() == [True, True, False, False]


@pytest.mark.parametrize("farthest", [0.0, -1.0, math.inf, math.nan, True])
def test_impossible_distance_is_refused(farthest: float) -> None:
    with pytest.raises(ValueError, match=r"distance above 0.*Fit gate_realism anew"):
        gate(Fixed(IDENTITY), 0.8, farthest=farthest)
