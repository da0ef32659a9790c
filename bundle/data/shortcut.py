# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""How much of a label can be read off an image without looking at the anatomy.

Where the classes come from different scanners, a classifier may learn the scanner. The measure: cross-validated AUC of
whole-image statistics, which know brightness, contrast, borders and sharpness but no organ. An accuracy means little
unless it is well above this baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

__all__ = ["STATISTICS", "BaselineScore", "shortcut_baseline", "whole_image_statistics"]

#: The columns of :func:`whole_image_statistics`.
STATISTICS = (
    "mean",
    "standard deviation",
    "percentile 1",
    "percentile 5",
    "percentile 25",
    "percentile 50",
    "percentile 75",
    "percentile 95",
    "percentile 99",
    "share of black",
    "share of white",
    "border mean",
    "border minus centre",
    "sharpness",
)


def whole_image_statistics(images: torch.Tensor) -> NDArray[np.float64]:
    """Computes the columns :data:`STATISTICS` of each image.

    Args:
        images: [N, C, H, W] in [-1, 1]; colour is averaged.

    Returns:
        [N, 14]. Black and white are the outer 2 % of the range; the border is the outer twelfth of each side, the
        centre the inner half; sharpness is the mean absolute difference of neighbouring pixels.
    """
    grey = images.mean(dim=1).double().numpy()
    side = max(1, min(grey.shape[1:]) // 12)
    border = np.ones(grey.shape[1:], bool)
    border[side:-side, side:-side] = False
    height, width = grey.shape[1:]
    centre = grey[:, height // 4 : -(height // 4), width // 4 : -(width // 4)].mean(axis=(1, 2))
    flat = grey.reshape(len(grey), -1)
    border_mean = grey[:, border].mean(axis=1)
    sharpness = (
        np.abs(np.diff(grey, axis=1)).mean(axis=(1, 2)) + np.abs(np.diff(grey, axis=2)).mean(axis=(1, 2))
    ) / 2.0
    return np.column_stack(
        [
            flat.mean(axis=1),
            flat.std(axis=1),
            *np.percentile(flat, (1, 5, 25, 50, 75, 95, 99), axis=1),
            (flat < -0.96).mean(axis=1),
            (flat > 0.96).mean(axis=1),
            border_mean,
            border_mean - centre,
            sharpness,
        ]
    )


@dataclass(frozen=True)
class BaselineScore:
    """Cross-validated AUC of one kind of classifier.

    Attributes:
        mean: over the seeds.
        spread: standard deviation over the seeds.
    """

    mean: float
    spread: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} +- {self.spread:.3f}"


def shortcut_baseline(
    features: NDArray[np.float64],
    labels: Sequence[int],
    patients: Sequence[int],
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    folds: int = 5,
) -> dict[str, BaselineScore]:
    """Measures how well features that see no anatomy tell the classes apart.

    Args:
        features: [N, F], for example of :func:`whole_image_statistics`.
        labels: class of each row.
        patients: group of each row; a patient is never in two folds.
        seeds: one repetition each, with its own folds.
        folds: of the cross-validation.

    Returns:
        AUC of the out-of-fold predictions (one against rest, macro average, for more than two classes) of "gradient
        boosting" and of "logistic" regression on standardised columns.
    """
    target = np.asarray(labels)
    scores: dict[str, list[float]] = {"gradient boosting": [], "logistic": []}
    for seed in seeds:
        models = {
            "gradient boosting": GradientBoostingClassifier(random_state=seed),
            "logistic": make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        }
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        parts = list(splitter.split(features, target, np.asarray(patients)))
        for name, model in models.items():
            predicted = np.zeros((len(target), len(np.unique(target))))
            for fit, judge in parts:
                predicted[judge] = model.fit(features[fit], target[fit]).predict_proba(features[judge])
            score = predicted[:, 1] if predicted.shape[1] == 2 else predicted
            scores[name].append(float(roc_auc_score(target, score, multi_class="ovr")))
    return {name: BaselineScore(float(np.mean(values)), float(np.std(values))) for name, values in scores.items()}
