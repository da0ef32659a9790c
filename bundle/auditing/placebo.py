# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The placebo: how near synthetic images are to patients whose images no network was trained on.

Blurred or implausible images are far from every patient, and good ones are near to many. Each measure of nearness is
therefore taken twice: towards training images (members) and towards as many held-out test images of the same classes
(placebo). Only the difference, the member-specific part, can come from what the generator has learnt of its members.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bundle.auditing.distances import Distances
from bundle.auditing.measures import exceeds
from bundle.auditing.reference import EMBEDDING, VERIFIER, Reference
from bundle.auditing.resampling import (
    DRAWS,
    LEAST,
    LEAST_FOR_PERCENTILE,
    LEVEL,
    Estimate,
    exact_share,
    patient_draws,
    percentile_needs_more,
)
from bundle.metrics.copies import copy_threshold

__all__ = [
    "HALVES",
    "PLACEBO_MEASURES",
    "PlaceboComparison",
    "cohort_nearness",
    "held_out_comparison",
    "held_out_halves",
    "placebo_comparisons",
]

#: Random galleries over which a value is averaged, and halves of the held-out patients that serve as a control.
HALVES = 100
#: Fewest images of a gallery.
LEAST_GALLERY = 10
#: The roles whose images form the columns of a nearness matrix, in their order.
GALLERY = ("train", "test")
# Kinds of nearness: by the two networks, which have thresholds, and by LPIPS.
LPIPS = "lpips"


@dataclass(frozen=True)
class Nearness:
    """How near the images of a set are to each training and each test image.

    Attributes:
        values: for each of ``audit_embedding`` (correlation), ``audit_verifier`` (logit) and ``lpips`` (negative
            distance), [N, train + test]; higher is nearer.
        groups: images that are drawn together, such as those of one patient or one path, [N].
        n_groups: how many numbers of groups there are, see `bundle.auditing.resampling.patient_draws`.
    """

    values: Mapping[str, Tensor]
    groups: Tensor
    n_groups: int | None = None

    def of(self, members: Tensor) -> Nearness:
        """Returns the same of some of the images."""
        values = {kind: value[members] for kind, value in self.values.items()}
        return Nearness(values, self.groups[members], self.n_groups)

    def redrawn(self, seed: int) -> Iterator[Nearness]:
        """Yields the set with its groups drawn anew, with replacement, `DRAWS` times."""
        for draw in patient_draws(self.groups, DRAWS, seed, self.n_groups):
            yield self.of(torch.from_numpy(draw))


@dataclass(frozen=True)
class PlaceboComparison:
    """One measure with its placebo.

    Attributes:
        members: towards training images, in galleries as large as that of the placebo.
        placebo: towards held-out test images.
        difference: members less placebo, the member-specific part.
    """

    members: Estimate
    placebo: Estimate
    difference: Estimate


def _share_above(nearest: Tensor, calibration: Tensor) -> float:
    """Share of images nearer than the 95th percentile of the validation images."""
    return float(exceeds(nearest, copy_threshold(calibration)).double().mean())


def _mean_distance(nearest: Tensor, calibration: Tensor) -> float:
    return float(-nearest.double().mean())


def _low_distance(nearest: Tensor, calibration: Tensor) -> float:
    return float(-nearest.double().quantile(0.95))


def _low_record_distance(nearest: Tensor, calibration: Tensor) -> float:
    return float(1.0 - nearest.double().quantile(0.95))


#: Measures that have a placebo: kind of nearness, and statistic of the nearest of a set and of the validation images.
PLACEBO_MEASURES: dict[str, tuple[str, Callable[[Tensor, Tensor], float]]] = {
    "copy_rate": (EMBEDDING, _share_above),
    "reidentified": (VERIFIER, _share_above),
    "dcr_p5": (EMBEDDING, _low_record_distance),
    "lpips_p5": (LPIPS, _low_distance),
    "mml": (LPIPS, _mean_distance),
}
#: Those that are percentiles.
PERCENTILES = ("dcr_p5", "lpips_p5")


def cohort_nearness(distances: Distances) -> Nearness:
    """Returns the nearness of the synthetic images, whose steps have been run."""
    rows, reference = distances.rows, distances.reference
    values = {
        EMBEDDING: reference.compared(EMBEDDING, rows["point"]),
        VERIFIER: reference.compared(VERIFIER, rows["seen"]),
        LPIPS: -rows["lpips"],
    }
    return Nearness(values, distances.groups, distances.n_groups)


def real_nearness(reference: Reference, role: str) -> Nearness:
    """Returns the nearness of the real images of a role; that of an image to itself is minus infinity."""
    lpips = torch.cat([reference.lpips(role, other) for other in GALLERY], dim=1)
    values = {name: reference.compared(name, reference.points[name][role]) for name in (EMBEDDING, VERIFIER)}
    values[LPIPS] = -lpips
    if role in GALLERY:
        start = sum(len(reference.real[other].pixels) for other in GALLERY[: GALLERY.index(role)])
        for value in values.values():
            value[:, start : start + len(value)].fill_diagonal_(-torch.inf)
    return Nearness(values, reference.real[role].patients)


class _Galleries:
    """Galleries of training and of test images: equal in number and in their classes, drawn at random.

    Args:
        reference: the real images.
        own: indices of the training images that may serve: those in whose class shares the test images were drawn.
        held_out: indices of the test images that may serve; None for all.
    """

    def __init__(self, reference: Reference, own: Tensor, held_out: Tensor | None = None) -> None:
        train, test = (reference.real[role] for role in GALLERY)
        held_out = torch.arange(len(test.pixels)) if held_out is None else held_out
        self.offset = len(train.pixels)
        self.patients = torch.cat([train.patients, test.patients + int(train.patients.max()) + 1]).numpy()
        self.pairs: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        for label in test.labels[held_out].unique().tolist():
            sides = own[train.labels[own] == label], held_out[test.labels[held_out] == label] + self.offset
            self.pairs.append((sides[0].numpy(), sides[1].numpy()))

    @property
    def size(self) -> int:
        """Images of a gallery."""
        return sum(min(len(members), len(others)) for members, others in self.pairs)

    def draw(self, random: np.random.Generator, redrawn: bool) -> tuple[Tensor, Tensor]:
        """Draws a gallery of members and one of held-out images, as columns of a nearness matrix.

        Args:
            random: makes the draw.
            redrawn: whether the patients of both are drawn anew, with replacement, as for an interval.
        """
        galleries = []
        for side in range(2):
            chosen = [random.permutation(pair[side])[: min(map(len, pair))] for pair in self.pairs]
            columns = np.concatenate(chosen)
            if redrawn:
                patients = np.unique(self.patients[columns])
                drawn = random.choice(patients, size=len(patients))
                columns = columns[np.isin(self.patients[columns], drawn)]
            galleries.append(torch.from_numpy(columns))
        return galleries[0], galleries[1]


def placebo_comparisons(cohort: Nearness, reference: Reference, own: Tensor, seed: int) -> dict[str, PlaceboComparison]:
    """Computes each of `PLACEBO_MEASURES` towards members, towards the placebo, and their difference.

    The intervals hold the draw of the synthetic images, of the galleries' patients, and of the validation images that
    set the thresholds: all are drawn anew together.

    Args:
        cohort: nearness of the images in question.
        reference: the real images.
        own: indices of the training images that may serve as members, see `bundle.auditing.images.RealData.own`.
        seed: seed of all draws.
    """
    galleries = _Galleries(reference, own)
    if len(cohort.groups) < LEAST or galleries.size < LEAST_GALLERY:
        reason = f"{len(cohort.groups)} images and galleries of {galleries.size} are too few for a placebo"
        lacking = Estimate(n=len(cohort.groups), reason=reason)
        return dict.fromkeys(PLACEBO_MEASURES, PlaceboComparison(lacking, lacking, lacking))
    val = real_nearness(reference, "val")
    random = np.random.default_rng(seed)
    whole = [_statistics(cohort, val, galleries.draw(random, redrawn=False)) for _ in range(HALVES)]
    redrawn = [
        _statistics(images, calibration, galleries.draw(random, redrawn=True))
        for images, calibration in zip(cohort.redrawn(seed), val.redrawn(seed + 1), strict=True)
    ]
    values, replicates = np.mean(whole, axis=0), np.stack(redrawn)  # [measures, 2], [draws, measures, 2]
    n = len(cohort.groups)
    compared = {
        name: PlaceboComparison(
            _centred(values[number, 0], replicates[:, number, 0], n, is_share=statistic is _share_above),
            _centred(values[number, 1], replicates[:, number, 1], n, is_share=statistic is _share_above),
            _centred(values[number, 0] - values[number, 1], replicates[:, number, 0] - replicates[:, number, 1], n),
        )
        for number, (name, (_, statistic)) in enumerate(PLACEBO_MEASURES.items())
    }
    if n < LEAST_FOR_PERCENTILE:
        lacking = Estimate(n=n, reason=percentile_needs_more(n))
        compared |= dict.fromkeys(PERCENTILES, PlaceboComparison(lacking, lacking, lacking))
    return compared


def held_out_halves(reference: Reference, own: Tensor, seed: int) -> dict[str, Estimate]:
    """Takes halves of the held-out patients for cohorts, with the other halves as placebo: a control of the placebo.

    Nobody has learnt anything from these images, so every difference must be compatible with 0. Where it is not,
    training and test images differ in more than their use, and the placebo proves nothing.

    Args:
        reference: the real images.
        own: see `placebo_comparisons`.
        seed: seed of the halves.

    Returns:
        The difference of each of `PLACEBO_MEASURES`: mean and interval over random halves.
    """
    test, val = real_nearness(reference, "test"), real_nearness(reference, "val")
    random = np.random.default_rng(seed)
    differences = []
    for is_cohort in _halves(test.groups, random):
        galleries = _Galleries(reference, own, (~is_cohort).nonzero()[:, 0])
        if galleries.size < LEAST_GALLERY or int(is_cohort.sum()) < LEAST:
            reason = f"halves of {len(test.groups)} test images are too few for a placebo"
            return dict.fromkeys(PLACEBO_MEASURES, Estimate(n=len(test.groups), reason=reason))
        members, others = _statistics(test.of(is_cohort.nonzero()[:, 0]), val, galleries.draw(random, redrawn=False)).T
        differences.append(members - others)
    found = np.stack(differences)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return {
        name: Estimate(float(found[:, number].mean()), float(low[number]), float(high[number]), len(test.groups))
        for number, name in enumerate(PLACEBO_MEASURES)
    }


def held_out_comparison(cohort: Nearness, reference: Reference, own: Tensor, seed: int) -> dict[str, float]:
    """Computes the member-specific differences without a third set of images for the thresholds.

    Random halves of the held-out patients set the thresholds, and the other halves are the placebo. This serves where
    only one set of held-out images may be looked at, as in the selection of settings.

    Args:
        cohort: nearness of the images in question.
        reference: the real images; those of the role ``test`` are the held-out ones, those of ``val`` are not used.
        own: see `placebo_comparisons`.
        seed: seed of the halves and galleries.

    Returns:
        The difference of each of `PLACEBO_MEASURES`, averaged over random halves.

    Raises:
        ValueError: a half has fewer than `LEAST_GALLERY` images.
    """
    held_out = real_nearness(reference, "test")
    random = np.random.default_rng(seed)
    differences = []
    for calibrates in _halves(held_out.groups, random):
        galleries = _Galleries(reference, own, (~calibrates).nonzero()[:, 0])
        if min(galleries.size, int(calibrates.sum())) < LEAST_GALLERY:
            raise ValueError(f"Halves of {len(held_out.groups)} held-out images are too few for a placebo.")
        calibration = held_out.of(calibrates.nonzero()[:, 0])
        members, others = _statistics(cohort, calibration, galleries.draw(random, redrawn=False)).T
        differences.append(members - others)
    return dict(zip(PLACEBO_MEASURES, np.mean(differences, axis=0).tolist(), strict=True))


def _halves(groups: Tensor, random: np.random.Generator) -> Iterator[Tensor]:
    """Yields `HALVES` random halves of the groups, as masks of their images."""
    names = np.unique(groups.numpy())
    for _ in range(HALVES):
        yield torch.from_numpy(np.isin(groups.numpy(), random.permutation(names)[: len(names) // 2]))


def _statistics(cohort: Nearness, val: Nearness, galleries: tuple[Tensor, Tensor]) -> NDArray[np.float64]:
    """Returns each measure towards both galleries, [measures, 2]."""
    nearest = {
        (kind, side): tuple(one.values[kind][:, gallery].amax(dim=1) for one in (cohort, val))
        for kind in cohort.values
        for side, gallery in enumerate(galleries)
    }
    return np.array(
        [[statistic(*nearest[kind, side]) for side in range(2)] for kind, statistic in PLACEBO_MEASURES.values()]
    )


def _centred(value: float, replicates: NDArray[np.float64], n: int, is_share: bool = False) -> Estimate:
    """Returns a value with the interval of its replicates around it.

    Drawn galleries hold fewer different images than whole ones, which shifts every replicate alike: the shift is taken
    out. A share of 0 or 1 in every replicate has the exact binomial interval.
    """
    if is_share and len(np.unique(replicates)) == 1 and value in (0.0, 1.0):
        return exact_share(round(value * n), n, replicates)
    moved = replicates - replicates.mean() + value
    if is_share:
        moved = moved.clip(0.0, 1.0)
    low, high = np.quantile(moved, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value), float(low), float(high), n, replicates=moved)
