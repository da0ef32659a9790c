# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Chooses settings of the walk on the validation images, by a rule that looks at neither test images nor mmL.

Measures are compared in the order of `CRITERIA`. A measure drops every candidate that is worse than the best one by
more than one standard error of their difference over the seeds (the one-standard-error rule of Breiman et al.,
"Classification and Regression Trees", 1984, section 3.4.3); the candidates that remain count as equal, and the next
measure decides among them. Of those that are equal in every measure, the one that was named first is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bundle.auditing.assessment import fidelity
from bundle.auditing.placebo import cohort_nearness, held_out_comparison
from bundle.auditing.reference import EMBEDDING
from bundle.evaluation.classifiers import SeedClassifiers
from bundle.evaluation.seed_pools import SeedPools
from bundle.evaluation.setting import DRAW_SEED, Setting
from bundle.evaluation.utility import accuracy_estimates
from bundle.markup import markdown_table, markdown_text
from bundle.metrics.copies import copy_threshold

__all__ = ["ARM", "CRITERIA", "Choice", "Criterion", "choice_tables", "choose", "measure_candidate"]

#: Reasons other than a criterion to drop a candidate: too few images for a seed, or a measure that is not a number.
GATE, MISSING = "gate", "missing"

#: The arm that is measured: what `generate` writes.
ARM = "plan_gate"


@dataclass(frozen=True)
class Criterion:
    """A measure that decides between candidates.

    Attributes:
        title: name in the tables.
        higher_is_better: whether a higher value is better.
    """

    title: str
    higher_is_better: bool


#: The measures in the order in which they decide. Utility is the quadratic weighted kappa for grades and the area under
#: the ROC curve for other classes.
CRITERIA = {
    "utility": Criterion("utility: classifier trained on the cohort, on validation images", True),
    "leak": Criterion("member-specific part of the copy rate, validation images as placebo", False),
    "precision": Criterion("precision: share of the cohort that looks real", True),
}


@dataclass(frozen=True)
class Choice:
    """The outcome of the rule.

    Attributes:
        chosen: name of the candidate that was chosen.
        dropped: criterion by which each other candidate was dropped; `GATE` or `MISSING` for candidates that could not
            be compared, empty for those that were named later than an equal one.
    """

    chosen: str
    dropped: Mapping[str, str]


def measure_candidate(setting: Setting, seed: int) -> dict[str, float]:
    """Measures `CRITERIA` for one seed of a candidate.

    Args:
        setting: the evaluation with the candidate's settings, whose data are judged by validation images, see
            `bundle.data.dataset.ImageData.judged_by`.
        seed: seed of end points, classifier and random galleries.

    Returns:
        Values by name of the criterion; empty if too few images pass the gate.
    """
    classifiers = SeedClassifiers(SeedPools(setting, seed))
    pools = classifiers.pools
    if pools.shortage(ARM):
        return {}
    logits = classifiers.logits(ARM)["logits"][len(setting.train.pixels) :]
    ordered = setting.data.modality.ordered
    accuracy = accuracy_estimates(logits, setting.test.labels, setting.test_draws, ordered)
    part = pools.cohort(ARM)
    threshold = copy_threshold(setting.reference.points[EMBEDDING]["val_correlation"])
    found = {
        "utility": accuracy["kappa" if ordered else "auc"].value,
        "leak": held_out_comparison(cohort_nearness(part), setting.reference, setting.real.own, seed)["copy_rate"],
        "precision": fidelity(part, threshold, {}, DRAW_SEED)["precision"]["cohort"].value,
    }
    pools.release()
    return found


def choose(measured: Mapping[str, Sequence[Mapping[str, float]]]) -> Choice:
    """Chooses a candidate.

    Args:
        measured: values of `measure_candidate` for each seed, by candidate, in the order in which these were named; the
            same seeds for all.

    Raises:
        ValueError: no candidate has enough images that pass the gate and all measures, or there are fewer than two
            seeds, so that no standard error can be computed.
    """
    if min(map(len, measured.values())) < 2:
        raise ValueError("The rule compares candidates over seeds: give at least two seeds.")
    dropped = {name: GATE for name, seeds in measured.items() if not all(seeds)}
    for name, seeds in measured.items():
        if name not in dropped and any(math.isnan(value) for seed in seeds for value in seed.values()):
            dropped[name] = MISSING
    left = [name for name in measured if name not in dropped]
    if not left:
        raise ValueError("No candidate has enough images that pass the gate, and every measure.")
    for key, criterion in CRITERIA.items():
        sign = 1.0 if criterion.higher_is_better else -1.0
        values = {name: sign * np.array([seed[key] for seed in measured[name]]) for name in left}
        best = max(left, key=lambda name: values[name].mean())
        for name in tuple(left):
            behind = values[best] - values[name]
            if behind.mean() > behind.std(ddof=1) / math.sqrt(len(behind)):
                left.remove(name)
                dropped[name] = key
    dropped |= dict.fromkeys(left[1:], "")
    return Choice(left[0], dropped)


def choice_tables(measured: Mapping[str, Sequence[Mapping[str, float]]], choice: Choice) -> str:
    """Returns the candidates with mean and standard deviation of each measure, as a Markdown table."""
    reasons = {GATE: "too few images pass the gate", MISSING: "a measure could not be taken"}
    rows = [["candidate", *(criterion.title for criterion in CRITERIA.values()), "decision"]]
    for name, seeds in measured.items():
        if name == choice.chosen:
            decision = "**chosen**"
        elif choice.dropped[name] in reasons:
            decision = reasons[choice.dropped[name]]
        else:
            decision = f"dropped by {choice.dropped[name]}" if choice.dropped[name] else "equal, named later"
        cells = []
        for key in CRITERIA:
            values = [seed[key] for seed in seeds if seed and not math.isnan(seed[key])]
            spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.4f}{spread}" if values else "-")
        rows.append([markdown_text(name), *cells, decision])
    return markdown_table(rows)
