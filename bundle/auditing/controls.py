# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Controls of an audit: tests of its detectors on images with known answers; if one fails, the audit is invalid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bundle.auditing.distances import Distances, Side
from bundle.auditing.measures import exceeds
from bundle.auditing.placebo import held_out_halves
from bundle.auditing.reference import EMBEDDING, VERIFIER
from bundle.auditing.resampling import DRAWS, Estimate, bootstrap, estimate, mean, patient_draws
from bundle.auditing.single_images import copies_found, false_alarms_of_halves
from bundle.auditing.tail import Bar
from bundle.metrics.copies import HARD_COPIES, PERCENTILE, PLANTED_CHANGES, copy_threshold
from bundle.steps import Tensors

__all__ = ["ALTERED_FOUND", "Control", "run_controls"]

#: Share of the planted copies that must be found.
ALTERED_FOUND = 0.90
#: Largest share of halves of the held-out patients in which the rule of the single image may flag any image.
MOST_ALARMS = 0.05
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

    def content(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {
            "key": self.key,
            "title": self.title,
            "required": self.required,
            "passed": self.passed,
            **self.estimate.content(),
        }


def run_controls(
    distances: Distances,
    own: Tensor,
    test: Side,
    rates: dict[str, Estimate],
    threshold: float,
    bars: dict[str, Bar],
    seed: int,
) -> list[Control]:
    """Runs the controls, each of which can fail.

    The control of test images fails if the one-sided 95 % lower bound of their copy rate exceeds the nominal 5 %. The
    bound covers the sampling errors of rate and threshold, by bootstrap draws of test and of validation patients.

    Args:
        distances: distances between the cohort and the real images; all of its steps must have been run.
        own: indices of the training images that are not extra, see `bundle.auditing.images.RealData.own`.
        test: distances of the test images to the training images.
        rates: copy rates of ``test`` and ``training`` images.
        threshold: correlation above which an image counts as a copy.
        bars: bars of the rule of the single image, for a cohort of this size.
        seed: seed of the bootstrap draws.

    Returns:
        The controls; those that can invalidate the audit come first.
    """
    reference = distances.reference
    planted = reference.read(f"{EMBEDDING}_planted")
    patients = distances.real["train"].patients[reference.planted]
    draws = patient_draws(patients, DRAWS, seed)
    altered = _mean_share([exceeds(planted[f"{name}_correlation"], threshold) for name in PLANTED_CHANGES], draws)
    strangers, alarms = rates["test"], false_alarms_of_halves(reference, seed)
    not_above = f"the nominal rate, {SET_RATE:.0%}: not above it by more than chance (one-sided 95 %)"
    is_as_rare = _lower_bound_of_false_alarms(distances, test, seed) <= SET_RATE
    halves = held_out_halves(reference, own, seed)["copy_rate"]
    is_fair = halves.low <= 0.0 <= halves.high if not halves.reason else None
    quiet = alarms.value <= MOST_ALARMS if not alarms.reason else None
    required, is_found = f"at least {ALTERED_FOUND:.0%}", altered.value >= ALTERED_FOUND
    return [
        Control("planted_altered", "altered copies, found", altered, required, is_found),
        Control("test_as_cohort", "test images as a cohort: copy rate", strangers, not_above, is_as_rare),
        Control(
            "placebo_of_halves",
            "halves of the test patients as cohorts: copy rate towards training images less placebo",
            halves,
            "compatible with 0",
            is_fair,
        ),
        Control(
            "false_alarms_of_halves",
            "halves of the held-out patients as cohorts: some image is flagged",
            alarms,
            f"at most {MOST_ALARMS:.0%}",
            quiet,
        ),
        *_reach(distances, planted, patients, draws, bars, seed),
    ]


def _reach(
    distances: Distances,
    planted: Tensors,
    patients: Tensor,
    draws: list[NDArray[np.int64]],
    bars: dict[str, Bar],
    seed: int,
) -> list[Control]:
    """Returns what single copies would be found among as many images as the cohort has; nothing is required of it."""
    reference = distances.reference
    train, verifying = distances.real["train"].patients, reference.read(f"{VERIFIER}_planted")
    found = copies_found(reference, bars, seed)
    named = [train[verifying[f"{name}_index"]] == patients for name in PLANTED_CHANGES]
    return [
        *(Control(f"hard, {name}", f"copies {name}", found[name], "", None) for name in HARD_COPIES),
        *(Control(f"planted, {name}", f"copies {name}", found[name], "", None) for name in PLANTED_CHANGES),
        Control(
            "verifier_precision_at_1",
            "altered copies whose patient the verifier ranks first (precision at 1)",
            _mean_share(named, draws),
            "",
            None,
        ),
    ]


def _mean_share(marks: list[Tensor], draws: list[NDArray[np.int64]]) -> Estimate:
    """Returns the share of marked images over several alterations of the same images."""
    every = torch.stack(marks, dim=1).double()
    return estimate(mean(every), bootstrap(every, draws, mean), every.numel())


def _lower_bound_of_false_alarms(distances: Distances, test: Side, seed: int) -> float:
    val = distances.reference.points[EMBEDDING]["val_correlation"]
    val_draws = patient_draws(distances.real["val"].patients, DRAWS, seed)
    thresholds = bootstrap(val, val_draws, copy_threshold)
    rates = [
        mean(exceeds(test.correlation[torch.from_numpy(draw)], threshold).double())
        for draw, threshold in zip(test.draws, thresholds, strict=True)
    ]
    return float(np.quantile(rates, 0.05))
