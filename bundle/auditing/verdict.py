# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The conclusion of an audit, in words and as an exit code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from bundle.auditing.assessment import Assessment
from bundle.auditing.catalogue import MEASURES
from bundle.auditing.images import RealImages
from bundle.auditing.resampling import Estimate
from bundle.auditing.single_images import FALSE_ALARMS

__all__ = ["COPIES", "PASSED", "UNUSABLE", "Verdict", "identical_images", "verdict_of"]

#: Exit codes; 1 and 2 are those of errors and of invalid options, as in all commands.
PASSED, COPIES, UNUSABLE = 0, 3, 4

#: Measures whose member-specific part decides about a whole cohort, and the false-alarm rate of both together.
SET_MEASURES, SET_FALSE_ALARMS = ("copy_rate", "reidentified"), 0.005


@dataclass(frozen=True)
class Verdict:
    """The conclusion of an audit.

    Attributes:
        code: `PASSED`, `COPIES` (training images were found in the cohort) or `UNUSABLE` (a control failed, or the
            cohort is too unlike the real images for the audit).
        title: conclusion in one line.
        reasons: reasons for the conclusion.
    """

    code: int
    title: str
    reasons: tuple[str, ...]


def is_above_zero(difference: Estimate) -> bool:
    """Tells whether a member-specific part is above 0 beyond chance, at this rule's share of the false alarms."""
    deviation = float(np.std(difference.replicates, ddof=1))
    return difference.value > float(norm.isf(SET_FALSE_ALARMS / len(SET_MEASURES))) * deviation


def identical_images(cohort: Tensor, real: dict[str, RealImages]) -> dict[str, Tensor]:
    """Finds the synthetic images that equal a real image in all pixels.

    Args:
        cohort: uint8 pixels [N, ...] of the synthetic images.
        real: real images by role, of the same size.

    Returns:
        Which images equal one of each role but none of an earlier role, bool [N].
    """
    found: dict[str, Tensor] = {}
    images, seen = [image.numpy().tobytes() for image in cohort], torch.zeros(len(cohort), dtype=torch.bool)
    for role, side in real.items():
        known = {image.numpy().tobytes() for image in side.pixels}
        found[role] = torch.tensor([image in known for image in images], dtype=torch.bool) & ~seen
        seen |= found[role]
    return found


def verdict_of(found: Assessment, copies: dict[str, int], n_cohort: int) -> Verdict:
    """Derives the conclusion from the results of an audit.

    Args:
        found: controls and measures.
        copies: numbers of images that `identical_images` found, by role.
        n_cohort: number of synthetic images.
    """
    findings = _findings(found, copies, n_cohort)
    reasons = tuple(reason for _, reason in findings)
    failed = [control for control in found.controls if control.passed is False]
    if failed:
        # An audit that misses known copies cannot clear a cohort; copies that it did find are reported nevertheless.
        failures = [
            f"Control failed: {control.title}: {control.estimate.value:.1%}, required {control.required}."
            for control in failed
        ]
        title = "THE RESULTS CANNOT BE USED: the audit failed its controls"
        return Verdict(UNUSABLE, title, (*failures, *reasons))
    strange = _strange(found)
    if reasons:
        return Verdict(COPIES, findings[0][0], (*reasons, *strange))
    if strange:
        title = "THE RESULTS CANNOT BE USED: the controls do not cover images like these"
        return Verdict(UNUSABLE, title, strange)
    nearness = found.placebo[SET_MEASURES[0]]
    difference = nearness.difference
    rates = (
        f" (copy rate {nearness.members.value:.1%} towards training images, {nearness.placebo.value:.1%} towards as "
        f"many held-out ones; more than {max(difference.high, 0.0):.1%} of difference would have been noticed)"
    )
    told = "" if difference.withheld else rates
    set_level = (
        "The cohort is too small to ask whether it resembles training patients more than others"
        if difference.reason
        else f"The cohort does not resemble training patients more than held-out ones, beyond chance{told}"
    )
    undecided = sum(control.required != "" and control.passed is None for control in found.controls)
    controls = f"{undecided} controls could not be decided" if undecided else "all controls were met"
    word = (
        f"{set_level}; no image is nearer to a training image, as a whole or in part, than chance allows; none is a "
        f"training image rotated, mirrored or inverted; {controls}."
    )
    return Verdict(PASSED, "NO SIGN OF COPIES by these measures", (word,))


def _findings(found: Assessment, copies: dict[str, int], n_cohort: int) -> list[tuple[str, str]]:
    """Returns title and reason of each finding against a release."""
    findings: list[tuple[str, str]] = []
    identical = sum(copies.values())
    if identical:
        where = ", ".join(f"{count} of {role}" for role, count in copies.items() if count)
        given = "real images were given as" if 2 * identical >= n_cohort else "there are real images in"
        words = (
            f"{identical} of {n_cohort} images are, pixel for pixel, images of dataset_dir ({where}): "
            f"{given} the cohort."
        )
        findings.append(("NOT TO BE RELEASED: the cohort holds real images", words))
    if found.transformed.copies:
        words = (
            f"{found.transformed.copies} of {n_cohort} images are training images that were rotated, mirrored or "
            "inverted."
        )
        findings.append(("NOT TO BE RELEASED: the cohort contains transformed real images", words))
    for key in SET_MEASURES:
        difference = found.placebo[key].difference
        if not difference.withheld and is_above_zero(difference):
            sides = found.placebo[key]
            words = (
                f"{MEASURES[key].title}: {sides.members.value:.1%} towards training images, {sides.placebo.value:.1%} "
                f"towards as many held-out images. The difference cannot be chance (one-sided, false alarms in "
                f"{SET_FALSE_ALARMS / len(SET_MEASURES):.2%} of cohorts)."
            )
            findings.append(("NOT TO BE RELEASED: the cohort resembles training patients more than others", words))
    flagged = int(found.single.flagged.sum())
    if flagged:
        words = (
            f"{flagged} of {n_cohort} images are nearer to a training image, as a whole or in part, than any image of "
            f"a cohort of {n_cohort} images of other people would be (false alarms in {FALSE_ALARMS:.1%} of cohorts). "
            "private/nearest.csv names them: look at them. --remove_flagged True writes the cohort without them and "
            "audits the rest by networks of another training."
        )
        findings.append(("NOT TO BE RELEASED AS IT IS: some images are copies, as a whole or in part", words))
    return findings


def _strange(found: Assessment) -> tuple[str, ...]:
    """Returns the reasons why a cohort is too unlike the real images for the audit's networks to detect copies."""
    reasons = []
    if found.transformed.orientation:
        reasons.append(
            f"Most images are more like real ones when they are {found.transformed.orientation}. Bring them into the "
            "orientation and the grey scale of the real images, and audit them then."
        )
    distance = found.figures["kid"]["cohort"]
    name, farthest = found.farthest
    if not distance.withheld and distance.low > farthest:
        reasons.append(
            f"The KID to training images, {distance.value:.0f} [{distance.low:.0f}, {distance.high:.0f}], is beyond "
            f"that of every change under which the controls find copies (the farthest, {name}: {farthest:.0f}). Audit "
            "images that look like those of dataset_dir; if they do, set cohort_preprocessing."
        )
    return tuple(reasons)
