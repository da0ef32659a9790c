# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The rule of the single image: which images are nearer to a training image than chance allows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bundle.auditing.distances import Distances
from bundle.auditing.measures import exceeds
from bundle.auditing.reference import DETECTORS, Reference
from bundle.auditing.resampling import DRAWS, LEAST, Estimate, exact_share, patient_draws, share
from bundle.auditing.tail import Bar, false_alarm_bar, tail_correlation
from bundle.metrics.copies import HARD_COPIES

__all__ = ["FALSE_ALARMS", "SingleImages", "false_alarms_of_halves", "hard_copies_found", "single_images"]

#: Probability with which the rule flags any image of a cohort of held-out people, whatever its size.
FALSE_ALARMS = 0.005
# Halves of the held-out patients that serve as a control.
HALVES = 200


@dataclass(frozen=True)
class SingleImages:
    """What the rule has found in a cohort.

    Attributes:
        bars: of each detector.
        flagged: images above the bar of any detector, [N].
        by_detector: images above each one's bar, [N] each.
    """

    bars: dict[str, Bar]
    flagged: Tensor
    by_detector: dict[str, Tensor]


def single_images(distances: Distances) -> SingleImages:
    """Applies the rule to a cohort whose steps have been run."""
    level = FALSE_ALARMS / len(DETECTORS)
    held_out = {name: distances.reference.held_out(name) for name in DETECTORS}
    bars = {name: false_alarm_bar(*found, len(distances.cohort), level) for name, found in held_out.items()}
    values = {name: distances.rows["correlation" if name == "embedding" else name] for name in DETECTORS}
    above = {name: exceeds(values[name], bars[name].value) for name in DETECTORS}
    return SingleImages(bars, torch.stack(list(above.values())).any(dim=0), above)


def hard_copies_found(reference: Reference, bars: dict[str, Bar], seed: int) -> dict[str, Estimate]:
    """Returns for each of `HARD_COPIES` the share that these bars would flag."""
    kept = reference.read("hard")
    patients = reference.real["train"].patients[reference.planted[: len(kept[f"{next(iter(HARD_COPIES))}, part"])]]
    draws = patient_draws(patients, DRAWS, seed)
    found = {}
    for kind in HARD_COPIES:
        above = [exceeds(kept[f"{kind}, {name}"], bars[name].value) for name in DETECTORS]
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
    found = {name: reference.held_out(name) for name in DETECTORS}
    patients = found["embedding"][1]
    if len(patients.unique()) < 2 * LEAST:
        reason = f"halves of {len(patients.unique())} held-out patients are too few for a control"
        return Estimate(n=len(patients), reason=reason)
    random, alarms = np.random.default_rng(seed), 0
    for _ in range(HALVES):
        shuffled = random.permutation(patients.unique().numpy())
        is_cohort = torch.from_numpy(np.isin(patients.numpy(), shuffled[: len(shuffled) // 2]))
        n_images = int(is_cohort.sum())
        for values, _ in found.values():
            level = FALSE_ALARMS / len(DETECTORS)
            if bool(exceeds(values[is_cohort], tail_correlation(values[~is_cohort], n_images, level)).any()):
                alarms += 1
                break
    return exact_share(alarms, HALVES, np.empty(0), len(patients))
