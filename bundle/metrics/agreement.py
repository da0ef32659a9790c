# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""How well two lists of grades agree."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import cohen_kappa_score

__all__ = ["quadratic_kappa"]


def quadratic_kappa(truth: ArrayLike, given: ArrayLike, num_classes: int) -> float:
    """Computes Cohen's kappa with quadratic weights (Cohen, Psychological Bulletin 70, 1968).

    Args:
        truth: grades [N], 0 to ``num_classes`` - 1.
        given: grades [N] that somebody else gave.
        num_classes: number of grades.

    Returns:
        1 for equal lists, 0 for no more agreement than by chance; NaN where all grades of both lists are one.
    """
    grades = np.concatenate([np.asarray(truth), np.asarray(given)])
    if len(np.unique(grades)) < 2:
        return float("nan")
    return float(cohen_kappa_score(truth, given, labels=np.arange(num_classes), weights="quadratic"))
