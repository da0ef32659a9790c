# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Singling out, linkability and inference, the three risks of Opinion 05/2014 of the Article 29 Working Party.

After Giomi et al., "Anonymeter", arXiv 2211.10459: each attack is made on members and, as a control, on never-seen
patients; the risk is what the attack achieves on members beyond the control (equation 3). The paper's attacks are on
tables; their forms for images are defined here.
"""

from __future__ import annotations

import math

import torch
from scipy.stats import norm
from torch import Tensor

from bundle.auditing.controls import Control
from bundle.auditing.deep.attack import Attack, Row
from bundle.auditing.resampling import LEVEL, Estimate

__all__ = ["linked", "read_label", "risk_attack", "risk_estimate", "singled_out", "singling_radius", "wilson"]

QUANTILE = float(norm.ppf((1 + LEVEL) / 2))
# Share of synthetic images that have a never-seen image within the radius of singling out.
RARE = 0.05


def singled_out(distances: Tensor, patients: Tensor, radius: float) -> Tensor:
    """Tells which synthetic images single out a patient: exactly one patient of the gallery is within the radius.

    It says that "a patient looks like this image" holds for one person of the gallery, as the Opinion defines singling
    out. It does not say that the image shows this person: images of nobody single somebody out as well, which is why
    only the excess over a gallery of never-seen patients counts.

    Args:
        distances: distances [N, M] of synthetic images to the images of a gallery.
        patients: patient number [M] of each image of the gallery.
        radius: the radius, from `singling_radius`, which knows no image of the gallery.
    """
    numbers = patients.unique(return_inverse=True)[1]
    nearest = torch.full((len(distances), int(numbers.max()) + 1), torch.inf, dtype=distances.dtype)
    nearest.scatter_reduce_(1, numbers.expand(len(distances), -1), distances, "amin")
    return (nearest <= radius).sum(dim=1) == 1


def singling_radius(distances: Tensor) -> float:
    """Returns the radius within which 5 % of the synthetic images have a validation image.

    With a wide radius, a copy of a patient would have others beside the patient, and single out nobody.

    Args:
        distances: distances [N, M] of synthetic images to validation images, as many as a gallery has.
    """
    return float(distances.amin(dim=1).double().quantile(RARE))


def linked(left: Tensor, right: Tensor, k: int) -> Tensor:
    """Tells which patients' halves are linked: a synthetic image is among the k nearest of both halves.

    It says that two parts of a record, held by two parties, lead to one record of the cohort, so that the parties learn
    that they hold the same patient. Both lungs of one person resemble each other, and a cohort shows what is common to
    people; only the excess over never-seen patients counts.

    Args:
        left: distances [M, N] of the left halves of real images to those of synthetic images.
        right: distances [M, N] of the right halves.
        k: number of neighbours.
    """
    near = torch.zeros(left.shape, dtype=torch.int64)
    for distances in (left, right):
        index = distances.topk(k, dim=1, largest=False).indices
        near += torch.zeros_like(near).scatter_(1, index, 1)
    return (near == 2).any(dim=1)


def read_label(distances: Tensor, synthetic: Tensor, labels: Tensor) -> Tensor:
    """Tells for which patients the nearest synthetic image has the right label.

    It says that an attacker who holds a patient's image, but not the diagnosis, reads it from the cohort. A cohort that
    is of any use tells normal from ill for everybody; only the excess over never-seen patients is a loss of privacy.

    Args:
        distances: distances [M, N] of real images to synthetic images.
        synthetic: labels [N] of the synthetic images.
        labels: labels [M] of the real images.
    """
    return synthetic[distances.argmin(dim=1)] == labels


def wilson(rate: float, n: int) -> tuple[float, float]:
    """Returns centre and half width of Wilson's interval of a rate of n attacks (Anonymeter, equation 2)."""
    square = QUANTILE**2
    centre = (rate * n + square / 2) / (n + square)
    return centre, QUANTILE / (n + square) * math.sqrt(n * rate * (1 - rate) + square / 4)


def risk_estimate(main: float, control: float, n_main: int, n_control: int) -> Estimate:
    """Estimates the risk (main - control) / (1 - control) (Anonymeter, equation 3), errors propagated to first order.

    Unlike the paper's, it is not cut off at 0, so that a control can be seen to be compatible with 0.

    Args:
        main: success rate on members.
        control: success rate on never-seen patients.
        n_main: number of independent attacks on members.
        n_control: number of those on never-seen patients.
    """
    (m, dm), (c, dc) = wilson(main, n_main), wilson(control, n_control)
    value = (m - c) / (1 - c)
    width = math.hypot(dm / (1 - c), (1 - m) / (1 - c) ** 2 * dc)
    return Estimate(value, value - width, value + width, min(n_main, n_control))


def _rate_row(key: str, title: str, rate: float, n: int) -> Row:
    centre, width = wilson(rate, n)
    low, high = min(rate, centre - width), max(rate, centre + width)
    return Row(key, title, Estimate(rate, max(0.0, low), min(1.0, high), n), "", True)


def risk_attack(
    key: str,
    title: str,
    question: str,
    rates: dict[str, float],
    sizes: dict[str, int],
    naive: float | None,
) -> Attack:
    """Reports one of the three attacks.

    Args:
        key: name in results.json.
        title: name in the report.
        question: what it asks, see `Attack`.
        rates: success rates on ``members``, ``unseen`` patients, the two halves of these (``half`` and
            ``other_half``), and on members of whom the cohort is a copy (``copied``).
        sizes: number of independent attacks behind each rate.
        naive: success rate of guessing without the cohort; None where there is no such guess.
    """
    risk = risk_estimate(rates["members"], rates["unseen"], sizes["members"], sizes["unseen"])
    halves = risk_estimate(rates["half"], rates["other_half"], sizes["half"], sizes["other_half"])
    copied = risk_estimate(rates["copied"], rates["unseen"], sizes["copied"], sizes["unseen"])
    rows = [
        Row("risk", "risk: beyond the control", risk, "0", True),
        _rate_row("members", "attack on members", rates["members"], sizes["members"]),
        _rate_row("unseen", "control: the same attack on never-seen patients", rates["unseen"], sizes["unseen"]),
    ]
    fair = None if halves.withheld else halves.low <= 0.0 <= halves.high
    controls = [
        Control("halves", "one half of the never-seen patients against the other", halves, "compatible with 0", fair),
        Control(
            "copied",
            "copies of members as the cohort",
            copied,
            "above 0",
            None if copied.withheld else copied.low > 0.0,
        ),
    ]
    if naive is not None:
        better = None if rows[1].estimate.withheld else rates["members"] > naive
        title_of_guess = "attack on members against guessing without the cohort"
        controls.append(Control("naive", title_of_guess, rows[1].estimate, f"above {naive:.1%}", better))
    return Attack(key, title, question, tuple(rows), tuple(controls))
