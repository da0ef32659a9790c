# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The conclusion of an audit, in words and as an exit code."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bundle.auditing.assessment import Assessment
from bundle.auditing.images import RealImages

__all__ = ["COPIES", "PASSED", "UNUSABLE", "Verdict", "pixel_copies", "verdict_of"]

#: Exit codes; 1 and 2 are those of errors and of invalid options, as in all commands.
PASSED, COPIES, UNUSABLE = 0, 3, 4


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


def pixel_copies(cohort: Tensor, real: dict[str, RealImages]) -> dict[str, int]:
    """Counts the synthetic images that equal a real image in all pixels, by the role of the real image.

    Args:
        cohort: uint8 pixels [N, ...] of the synthetic images.
        real: real images by role, of the same size.
    """
    counts = {}
    left = [image.numpy().tobytes() for image in cohort]
    for role, side in real.items():
        known = {image.numpy().tobytes() for image in side.pixels}
        counts[role] = sum(image in known for image in left)
        left = [image for image in left if image not in known]
    return counts


def verdict_of(found: Assessment, copies: dict[str, int], n_cohort: int, n_test: int) -> Verdict:
    """Derives the conclusion from the results of an audit.

    Args:
        found: controls and measures.
        copies: counts of identical images, from `pixel_copies`.
        n_cohort: number of synthetic images.
        n_test: number of test images.
    """
    rates = found.figures["copy_rate"].items()
    told = {name: "" if rate.withheld else f" ({rate.value:.1%})" for name, rate in rates}
    findings = _findings(found, copies, n_cohort, n_test, told)
    reasons = tuple(reason for _, reason in findings)
    failed = [control for control in found.controls if control.passed is False]
    if failed:
        # An audit that misses known copies cannot clear a cohort; copies that it did find are reported nevertheless.
        failures = [
            f"Control failed: {control.title}: {control.estimate.value:.1%}, required {control.required}."
            for control in failed
        ]
        title = "THE FIGURES CANNOT BE USED: the instrument failed its own trial"
        return Verdict(UNUSABLE, title, (*failures, *reasons))
    strange = _strange(found)
    if reasons:
        return Verdict(COPIES, findings[0][0], (*reasons, *strange))
    if strange:
        title = "THE FIGURES CANNOT BE USED: the instrument has not been tried on images like these"
        return Verdict(UNUSABLE, title, strange)
    word = (
        f"The copy rate{told['cohort']} does not exceed that of test images{told['test']} by more than chance; no "
        "image is nearer to a training patient than every test image is, by embedding and verifier; none is a training "
        "image turned, mirrored or inverted; all controls were met."
    )
    return Verdict(PASSED, "NO SIGN OF COPIES by these measures", (word,))


def _findings(
    found: Assessment, copies: dict[str, int], n_cohort: int, n_test: int, told: dict[str, str]
) -> list[tuple[str, str]]:
    """Returns title and reason of each finding against a release; `told` are the copy rates, in brackets."""
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
    if found.disguises.copies:
        words = (
            f"{found.disguises.copies} of {n_cohort} images are training images that were turned, mirrored or inverted."
        )
        findings.append(("NOT TO BE RELEASED: the cohort holds real images in disguise", words))
    if found.excess > 0:
        bound = f" by at least {100 * found.excess:.1f} points (one-sided 95 %)" if told["cohort"] else ""
        words = f"The copy rate{told['cohort']} exceeds that of test images{told['test']}{bound or ' beyond chance'}."
        findings.append(("NOT TO BE RELEASED: the cohort copies training images more often than chance does", words))
    if found.nearer_by_both:
        # The rank of one further held-out image among n_test + 1 is uniform: it is the nearest with 1 / (n_test + 1).
        expected = n_cohort / (n_test + 1)
        words = (
            f"{found.nearer_by_both} of {n_cohort} images are nearer to a training patient than every test image is, "
            f"and embedding and verifier name the same patient. (Of {n_cohort} strangers, {expected:.1f} would be "
            "expected nearer, by the embedding alone.) private/nearest.csv names them: look at them, and take them out."
        )
        findings.append(
            ("NOT TO BE RELEASED AS IT IS: some images are nearer to a patient than any stranger is", words)
        )
    return findings


def _strange(found: Assessment) -> tuple[str, ...]:
    """Returns the reasons why a cohort is too unlike the real images for the audit's networks to detect copies."""
    reasons = []
    if found.disguises.lying:
        reasons.append(
            f"Most images are more like real ones when they are {found.disguises.lying}. Bring them into the "
            "orientation and the grey scale of the real images, and audit them then."
        )
    distance = found.figures["kid"]["cohort"]
    name, farthest = found.farthest
    if not distance.withheld and distance.low > farthest:
        reasons.append(
            f"The KID to training images, {distance.value:.0f} [{distance.low:.0f}, {distance.high:.0f}], is beyond "
            f"that of every change under which the trial finds copies (the farthest, {name}: {farthest:.0f}). Audit "
            "images that look like those of dataset_dir; if they do, set cohort_preprocessing."
        )
    return tuple(reasons)
