# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The rule of the single image: which images are nearer to a training image than chance allows."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from bundle.auditing.distances import Distances
from bundle.auditing.measures import exceeds
from bundle.auditing.reference import COPY_KINDS, DETECTORS, Reference
from bundle.auditing.resampling import DRAWS, LEAST, Estimate, exact_share, patient_draws, share
from bundle.auditing.tail import Bar, bars_without, false_alarm_bar, odd_patients, tail_correlation

__all__ = [
    "FALSE_ALARMS",
    "HeldOut",
    "SingleImages",
    "copies_found",
    "false_alarms_of_halves",
    "held_out_people",
    "single_images",
]

#: Probability with which the rule flags any image of a cohort of held-out people, whatever its size.
FALSE_ALARMS = 0.005
# Halves of the held-out patients that serve as a control.
HALVES = 200


# False-alarm rate of each detector.
LEVEL = FALSE_ALARMS / len(DETECTORS)


@dataclass(frozen=True)
class HeldOut:
    """What the detectors find in held-out images, without patients who are odd to any detector (`odd_patients`).

    Attributes:
        values: correlation of each image with its most similar training image, [N] by detector.
        patients: whose image each one is, [N].
        odd: which images of val and test, in this order, belong to odd patients, bool [val + test].
        n_odd: number of odd patients.
    """

    values: dict[str, Tensor]
    patients: Tensor
    odd: Tensor
    n_odd: int


@dataclass(frozen=True)
class SingleImages:
    """What the rule has found in a cohort.

    Attributes:
        bars: of each detector.
        flagged: images above the bar of any detector, [N].
        by_detector: images above each one's bar, [N] each.
        odd: which held-out images set no bar, bool [val + test].
        n_odd: number of their patients.
        fewest: number of flagged images if that held-out patient is left out without whom it is the lowest.
        most: the same for the highest.
    """

    bars: dict[str, Bar]
    flagged: Tensor
    by_detector: dict[str, Tensor]
    odd: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    n_odd: int = 0
    fewest: int = 0
    most: int = 0


def held_out_people(reference: Reference) -> HeldOut:
    """Returns what the detectors find in the held-out images that set the bars."""
    values = {name: reference.held_out(name)[0] for name in DETECTORS}
    patients = reference.held_out(DETECTORS[0])[1]
    numbers = torch.cat([odd_patients(found, patients) for found in values.values()]).unique()
    odd = torch.isin(patients, numbers)
    return HeldOut({name: found[~odd] for name, found in values.items()}, patients[~odd], odd, len(numbers))


def single_images(distances: Distances) -> SingleImages:
    """Applies the rule to a cohort whose steps have been run."""
    held_out, n = held_out_people(distances.reference), len(distances.cohort)
    found = {**distances.found, DETECTORS[0]: distances.rows["correlation"]}
    bars, above, without = {}, {}, []
    for name, values in held_out.values.items():
        bars[name] = false_alarm_bar(values, held_out.patients, n, LEVEL)
        above[name] = exceeds(found[name], bars[name].value)
        others = bars_without(values, held_out.patients, n, LEVEL)
        without.append(found[name].double()[:, None] > others[None, :])
    counts = torch.stack(without).any(dim=0).sum(dim=0)
    flagged = torch.stack(list(above.values())).any(dim=0)
    return SingleImages(bars, flagged, above, held_out.odd, held_out.n_odd, int(counts.min()), int(counts.max()))


def copies_found(reference: Reference, bars: dict[str, Bar], seed: int) -> dict[str, Estimate]:
    """Returns for each of `HARD_COPIES` and of `PLANTED_CHANGES` the share that these bars would flag."""
    patients = reference.real["train"].patients[reference.planted]
    draws = patient_draws(patients[: len(reference.copies(COPY_KINDS[0])[DETECTORS[0]])], DRAWS, seed)
    found = {}
    for kind in COPY_KINDS:
        kept = reference.copies(kind)
        above = [exceeds(kept[name], bars[name].value) for name in DETECTORS]
        found[kind] = share(torch.stack(above).any(dim=0), draws)
    return found


def false_alarms_of_halves(reference: Reference, seed: int) -> Estimate:
    """Applies the rule to halves of the held-out patients, with bars from the other halves: a negative control.

    Args:
        reference: the real images.
        seed: seed of the halves.

    Returns:
        The share of halves in which any image is flagged, with the interval of that many independent halves.
    """
    held_out = held_out_people(reference)
    patients = held_out.patients
    if len(patients.unique()) < 2 * LEAST:
        reason = f"halves of {len(patients.unique())} held-out patients are too few for a control"
        return Estimate(n=len(patients), reason=reason)
    random, alarms = np.random.default_rng(seed), 0
    for _ in range(HALVES):
        shuffled = random.permutation(patients.unique().numpy())
        is_cohort = torch.from_numpy(np.isin(patients.numpy(), shuffled[: len(shuffled) // 2]))
        n_images = int(is_cohort.sum())
        for values in held_out.values.values():
            if bool(exceeds(values[is_cohort], tail_correlation(values[~is_cohort], n_images, LEVEL)).any()):
                alarms += 1
                break
    return exact_share(alarms, HALVES, np.empty(0), len(patients))
