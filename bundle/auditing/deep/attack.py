# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""What every attack reports: estimates with intervals, and controls that can fail."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bundle.auditing.controls import Control
from bundle.auditing.measures import area_under_curve, true_positive_rate
from bundle.auditing.resampling import DRAWS, LEAST, Estimate, estimate, patient_draws

__all__ = ["RATES", "Attack", "Row", "mean_estimate", "roc_estimates", "roc_rows"]

#: False positive rates at which the share of members found is reported, by key.
RATES = {"tpr_1": 0.01, "tpr_5": 0.05}


@dataclass(frozen=True)
class Row:
    """One figure of an attack.

    Attributes:
        key: name in results.json.
        title: name in the report.
        estimate: value with its interval.
        expected: value where the generator gives nobody away, in words.
        is_share: whether the value is a share, to be shown in percent.
    """

    key: str
    title: str
    estimate: Estimate
    expected: str = ""
    is_share: bool = False


@dataclass(frozen=True)
class Attack:
    """The result of one attack.

    Attributes:
        key: name in results.json.
        title: name in the report.
        question: what the attack asks, and what its figures can and cannot say.
        rows: figures.
        controls: trials with a known answer; if one fails, the figures cannot be used.
        reason: reason why the attack could not be made; empty if it was.
    """

    key: str
    title: str
    question: str
    rows: tuple[Row, ...] = ()
    controls: tuple[Control, ...] = ()
    reason: str = ""

    @property
    def usable(self) -> bool:
        """Whether no control failed and at least one was decided."""
        passed = [control.passed for control in self.controls]
        return not self.reason and False not in passed and True in passed

    def content(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        rows = [
            {
                "key": row.key,
                "title": row.title,
                "expected": row.expected,
                "is_share": row.is_share,
                **row.estimate.content(),
            }
            for row in self.rows
        ]
        return {
            "key": self.key,
            "title": self.title,
            "question": self.question,
            "usable": self.usable,
            "reason": self.reason,
            "rows": rows,
            "controls": [control.content() for control in self.controls],
        }


def roc_estimates(scores: Tensor, member: Tensor, patients: Tensor, seed: int) -> dict[str, Estimate]:
    """Estimates how well scores tell members from others, averaged over targets.

    A bootstrap draw takes patients and targets with replacement, so that the intervals of several targets hold for the
    recipe by which the targets were trained.

    Args:
        scores: score [T, P] of each image for each of T targets (attacked generators); higher for members.
        member: whether each image is a member, bool [T, P].
        patients: patient number [P] of each image.
        seed: seed of the bootstrap draws.

    Returns:
        Area under the ROC curve (``auc``) and true positive rates at the false positive rates of `RATES`.
    """
    n = int(min(member.sum(dim=1).min(), (~member).sum(dim=1).min()))
    if n < LEAST:
        reason = f"at least {LEAST} images are needed on each side; there are {n}"
        return {key: Estimate(reason=reason, n=n) for key in ("auc", *RATES)}
    value = _statistics(scores, member)
    targets = np.random.default_rng(seed)
    replicates = []
    for draw in patient_draws(patients, DRAWS, seed):
        images = torch.from_numpy(draw)
        chosen = torch.from_numpy(targets.integers(len(scores), size=len(scores)))
        replicates.append(_statistics(scores[chosen][:, images], member[chosen][:, images]))
    found = {
        key: estimate(value[number], np.array(replicates)[:, number], scores.shape[1])
        for number, key in enumerate(("auc", *RATES))
    }
    others = int((~member).sum(dim=1).min())
    for key, rate in RATES.items():
        if others * rate < 1.0:
            reason = f"{rate:.0%} of {others} non-members is less than one image"
            found[key] = Estimate(reason=reason, n=others)
    return found


def _statistics(scores: Tensor, member: Tensor) -> tuple[float, ...]:
    found = []
    for row, inside in zip(scores, member, strict=True):
        members, others = row[inside], row[~inside]
        if len(members) and len(others):
            rates = [true_positive_rate(members, others, rate) for rate in RATES.values()]
            found.append((area_under_curve(members, others), *rates))
    if not found:
        return (math.nan,) * (1 + len(RATES))
    return tuple(np.mean(found, axis=0).tolist())


def roc_rows(key: str, title: str, found: dict[str, Estimate]) -> list[Row]:
    """Returns the lines of `roc_estimates` for the report."""
    rows = [Row(f"{key}_auc", f"{title}: AUC", found["auc"], "0.5")]
    for name, rate in RATES.items():
        words = f"{title}: members found at {rate:.0%} false alarms"
        rows.append(Row(f"{key}_{name}", words, found[name], f"{rate:.0%}", True))
    return rows


def mean_estimate(values: list[Estimate]) -> Estimate:
    """Returns the mean of estimates that were made with the same bootstrap draws, or the first that has none."""
    for value in values:
        if value.withheld:
            return value
    replicates = np.mean([value.replicates for value in values], axis=0)
    return estimate(float(np.mean([value.value for value in values])), replicates, values[0].n)
