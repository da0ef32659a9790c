# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The measures of an evaluation: their titles, the spaces in which they are computed, and their ideal values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bundle.auditing.catalogue import MEASURES as AUDIT_MEASURES
from bundle.auditing.catalogue import Measure
from bundle.auditing.placebo import PLACEBO_MEASURES
from bundle.evaluation.distinct import DRAWN
from bundle.metrics.features import FEATURES
from bundle.metrics.lpips import LPIPS_TRUNK

__all__ = ["COMPARISONS", "EXTERNAL", "GRADES", "LONG_COMPARISONS", "MEASURES", "PAPER", "PATHS", "PLACEBO", "limits"]

_TEST = "a classifier trained on the arm alone, real test images"
_FEATURES = f"{FEATURES} features, all images of the arm against all training images"
_REAL = "near Real's"
_JUDGE = "Real's classifier on the arm's images; in the column Real, on test images"

#: The measures of the paper and related ones, by their names in results.json.
PAPER = {
    "accuracy": Measure("Acc", _TEST, _REAL, True),
    "auc": Measure("AUC", _TEST, _REAL),
    "kappa": Measure("Quadratic weighted kappa", _TEST, _REAL),
    "balanced_accuracy": Measure("Balanced accuracy", _TEST, _REAL, True),
    "statistics_accuracy": Measure(
        "Shortcut: accuracy of 14 statistics",
        "gradient boosting on statistics of the whole image",
        "well below Acc",
        True,
    ),
    "random_trunk_accuracy": Measure(
        "Shortcut: accuracy of a random trunk", "logistic regression on an untrained ResNet-18", "well below Acc", True
    ),
    "statistics_kappa": Measure("Shortcut: kappa of 14 statistics", "as above", "well below kappa"),
    "random_trunk_kappa": Measure("Shortcut: kappa of a random trunk", "as above", "well below kappa"),
    "label_accuracy": Measure("Label shown, by Real's classifier", _JUDGE, _REAL, True),
    "label_kappa": Measure("Label shown: kappa", "the same", _REAL),
    "grade_rise": Measure("Label shown: smallest rise of the expected grade to the next", "the same", "above 0"),
    "mia_accuracy": Measure("MIA", "gradient boosting on the classifier's answers", "50 %", True),
    "lira_auc": Measure("LiRA, transferred: AUC", "shadow models on halves of the real images", "0.5"),
    "lira_tpr": Measure("LiRA: members found at 1 % false alarms", "the same", "1 %", True),
    "frechet_all": Measure("Fréchet distance", _FEATURES, "low"),
    "kid_all": Measure("KID", _FEATURES, "low"),
    "mml": AUDIT_MEASURES["mml"],
}

#: Measures of the classifiers that are taken on external images as well, where there are any.
EXTERNAL = {
    f"external_{key}": replace(PAPER[key], title=f"{PAPER[key].title}, external images")
    for key in (
        "accuracy",
        "auc",
        "kappa",
        "balanced_accuracy",
        "statistics_accuracy",
        "random_trunk_accuracy",
        "statistics_kappa",
        "random_trunk_kappa",
    )
}

#: Measures that are defined for ordinal grades only.
GRADES = tuple(key for key in (*PAPER, *EXTERNAL) if key.endswith("kappa") or key == "grade_rise")

#: Measures of the gate's decisions, of variety and cost, and of long paths.
PATHS = {
    "recognised": Measure("Recognised by the gate", "gate_identity", "0 %", True),
    "mislabelled": Measure("Label lost, by the gate", "gate_class", "0 %", True),
    "unrealistic": Measure("Unrealistic, by the gate", "gate_realism", "0 %", True),
    "smoothness": Measure("LPIPS between neighbours of a long path", LPIPS_TRUNK, "low"),
    "distinct": Measure(
        f"Distinct images among {DRAWN}",
        "contrastive embedding: no two nearer than a near-duplicate",
        "near test images'",
    ),
    "cpu_seconds": Measure("CPU seconds per released image", "walk, synthesis and gate; this machine only", "low"),
    "path_variety": Measure("Mean LPIPS between two images of a long path", LPIPS_TRUNK, "high"),
}

_SPECIFIC = "0: whatever nearness is left is to nobody in particular"

#: Measures of nearness towards members, towards as many held-out test images (placebo), and the difference.
PLACEBO = {
    f"{key}_{side}": Measure(
        f"{AUDIT_MEASURES[key].title}{title}",
        AUDIT_MEASURES[key].space,
        _SPECIFIC if side == "specific" else "as the other side",
        AUDIT_MEASURES[key].is_share,
    )
    for key in PLACEBO_MEASURES
    for side, title in (
        ("members", ", towards as many training as test images"),
        ("placebo", ", towards test images (placebo)"),
        ("specific", ", member-specific difference"),
    )
}

#: All measures by name.
MEASURES = {
    **PAPER,
    **EXTERNAL,
    **{key: measure for key, measure in AUDIT_MEASURES.items() if key not in PAPER},
    **PATHS,
    **PLACEBO,
}


def limits(key: str) -> tuple[float, float]:
    """Returns the smallest and the largest possible value of a measure; infinite where none is known."""
    measure = MEASURES.get(key)
    if key == "distinct":
        return 1.0, float(DRAWN)
    if key.endswith("_specific") or not ((measure and measure.is_share) or key.endswith(("_accuracy", "auc"))):
        return -np.inf, np.inf
    return 0.0, 1.0


#: Pairs of arms that are compared by the difference first minus second and, for some measures, the ratio.
COMPARISONS = (
    ("plan", "linear"),
    ("plan_gate", "linear_gate"),
    ("linear_gate", "linear"),
    ("plan_gate", "plan"),
    ("linear", "random"),
    ("random_gate", "random"),
    ("linear_gate", "random_gate"),
    ("plan_gate", "random_gate"),
    ("linear_one_gate", "random_gate"),
    ("linear_one_gate", "linear_gate"),
    ("plan_one_gate", "random_gate"),
    ("plan_one_gate", "linear_one_gate"),
    ("plan_one_gate", "plan_gate"),
    ("plan_gate", "linear_one_gate"),
    ("plan_gate", "random"),
    ("plan_gate", "real"),
)
#: Pairs of arms of long paths, likewise.
LONG_COMPARISONS = (
    ("long_plan", "long_linear"),
    ("common_published", "common_linear"),
    ("common_plan", "common_linear"),
    ("common_plan", "common_published"),
)
