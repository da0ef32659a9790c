# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Controls of an audit: tests of its detectors on images with known answers; if one fails, the audit is invalid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bundle.auditing.distances import Distances, Side
from bundle.auditing.measures import exceeds
from bundle.auditing.reference import EMBEDDING, VERIFIER
from bundle.auditing.resampling import DRAWS, Estimate, bootstrap, estimate, mean, patient_draws, share
from bundle.metrics.copies import PERCENTILE, PLANTED_CHANGES, copy_threshold

__all__ = ["ALTERED_FOUND", "EXACT_FOUND", "Control", "try_instrument"]

#: Smallest shares of exact and of altered planted copies that must be detected.
EXACT_FOUND, ALTERED_FOUND = 0.95, 0.90
#: Nominal copy rate of held-out images, which follows from the percentile of the copy threshold.
SET_RATE = 1.0 - PERCENTILE / 100.0


@dataclass(frozen=True)
class Control:
    """The result of one control.

    Attributes:
        key: name in results.json.
        title: name in the report.
        estimate: share of the images that were detected as copies.
        required: requirement, in words.
        passed: whether the requirement is met; None for controls that are reported only.
    """

    key: str
    title: str
    estimate: Estimate
    required: str
    passed: bool | None


def try_instrument(
    distances: Distances, test: Side, rates: dict[str, Estimate], threshold: float, seed: int
) -> list[Control]:
    """Measures how many planted copies are detected, and the copy rates of real images in the place of a cohort.

    The control of test images fails if the one-sided 95 % lower bound of their copy rate exceeds the nominal 5 %. The
    bound covers the sampling errors of rate and threshold, by bootstrap draws of test and of validation patients.

    Args:
        distances: distances between the cohort and the real images; all of its steps must have been run.
        test: distances of the test images to the training images.
        rates: copy rates of ``test`` and ``training`` images.
        threshold: correlation above which an image counts as a copy.
        seed: seed of the bootstrap draws.

    Returns:
        The controls; those that can invalidate the audit come first.
    """
    planted = distances.reference.read(f"{EMBEDDING}_planted")
    patients = distances.real["train"].patients[distances.reference.planted]
    draws = patient_draws(patients, DRAWS, seed)
    found = {name: exceeds(planted[f"{name}_correlation"], threshold) for name in ("exact", *PLANTED_CHANGES)}
    exact = share(found["exact"], draws)
    every = torch.stack([found[name] for name in PLANTED_CHANGES], dim=1).double()
    altered = estimate(mean(every), bootstrap(every, draws, mean), every.numel())
    strangers, everyone = rates["test"], rates["training"]
    exact_needed, altered_needed = f"at least {EXACT_FOUND:.0%}", f"at least {ALTERED_FOUND:.0%}"
    not_above = f"the set rate, {SET_RATE:.0%}: not above it by more than chance (one-sided 95 %)"
    lower = _lower_bound_of_false_alarms(distances, test, seed)
    controls = [
        Control("planted_exact", "exact copies, found", exact, exact_needed, exact.value >= EXACT_FOUND),
        Control("planted_altered", "altered copies, found", altered, altered_needed, altered.value >= ALTERED_FOUND),
        Control("test_as_cohort", "test images as a cohort: copy rate", strangers, not_above, lower <= SET_RATE),
        Control(
            "training_as_cohort",
            "training images, resampled, as a cohort: copy rate",
            everyone,
            exact_needed,
            everyone.value >= EXACT_FOUND,
        ),
    ]
    controls += [
        Control(f"planted, {name}", f"copies {name}", share(found[name], draws), "", None) for name in PLANTED_CHANGES
    ]
    train = distances.real["train"].patients
    verifying = distances.reference.read(f"{VERIFIER}_planted")
    alone, named = [], []
    for name in PLANTED_CHANGES:
        by_embedding, by_verifier = (train[step[f"{name}_index"]] for step in (planted, verifying))
        alone.append((planted[f"{name}_correlation"] > test.correlation.max()) & (by_embedding == by_verifier))
        named.append(by_verifier == patients)
    shown = {
        "altered_alone": ("altered copies that would stop a release if they were the only one", alone),
        "verifier_precision_at_1": ("altered copies whose patient the verifier ranks first (precision at 1)", named),
    }
    for key, (title, marks) in shown.items():
        marked = torch.stack(marks, dim=1).double()
        found_share = estimate(mean(marked), bootstrap(marked, draws, mean), marked.numel())
        controls.append(Control(key, title, found_share, "", None))
    return controls


def _lower_bound_of_false_alarms(distances: Distances, test: Side, seed: int) -> float:
    val = distances.reference.points[EMBEDDING]["val_correlation"]
    val_draws = patient_draws(distances.real["val"].patients, DRAWS, seed)
    thresholds = bootstrap(val, val_draws, copy_threshold)
    rates = [
        mean(exceeds(test.correlation[torch.from_numpy(draw)], threshold).double())
        for draw, threshold in zip(test.draws, thresholds, strict=True)
    ]
    return float(np.quantile(rates, 0.05))
