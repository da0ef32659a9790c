# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Agreement of two lists of ordinal grades."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import cohen_kappa_score

__all__ = ["quadratic_kappa"]


def quadratic_kappa(truth: ArrayLike, given: ArrayLike, num_classes: int) -> float:
    """Computes Cohen's kappa with quadratic weights (Cohen, Psychological Bulletin 70, 1968).

    Args:
        truth: reference grades [N], 0 to ``num_classes`` - 1.
        given: predicted grades [N], in the same range.
        num_classes: number of grades.

    Returns:
        Kappa: 1 for equal lists, 0 for chance agreement, NaN if both lists consist of one and the same grade.
    """
    grades = np.concatenate([np.asarray(truth), np.asarray(given)])
    if len(np.unique(grades)) < 2:
        return float("nan")
    return float(cohen_kappa_score(truth, given, labels=np.arange(num_classes), weights="quadratic"))
