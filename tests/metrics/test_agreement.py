# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest

from bundle.metrics.agreement import quadratic_kappa


def test_a_hand_computed_case() -> None:
    # Observed: one image in four is off by 1, of at most 2: 1/4 * 1/4. Expected, by chance: marginals of the truth
    # (2, 1, 1) and of the answers (1, 2, 1) of 4; sum over pairs of their products times the squared distance / 4 is
    # (2*2*1 + 2*1*4 + 1*1*1 + 1*1*1 + 1*1*4 + 1*2*1) / (16 * 4).
    expected = 1 - (1 / 16) / (20 / 64)
    assert quadratic_kappa([0, 0, 1, 2], [0, 1, 1, 2], 3) == pytest.approx(expected)


def test_a_neighbouring_grade_is_forgiven_more_than_a_distant_one() -> None:
    truth = [0, 1, 2, 3, 4]
    assert quadratic_kappa(truth, truth, 5) == 1.0
    assert 1 > quadratic_kappa(truth, [1, 1, 2, 3, 4], 5) > quadratic_kappa(truth, [4, 1, 2, 3, 4], 5)


def test_one_grade_alone_says_nothing() -> None:
    assert math.isnan(quadratic_kappa([2, 2], [2, 2], 5))
    assert quadratic_kappa([2, 2], [3, 2], 5) == 0.0
