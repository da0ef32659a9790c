# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Computes every measure of an audit for the cohort and, as references, for test images and for training images.

Test images in the place of a cohort show the value of a measure without copies, training images that with copies only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bundle.auditing.catalogue import FIDELITY
from bundle.auditing.controls import Control, run_controls
from bundle.auditing.distances import Distances, Side
from bundle.auditing.measures import (
    adversarial_accuracy,
    area_under_curve,
    authentic,
    exceeds,
    low_percentile,
    membership_scores,
    nearest_two,
    precision_recall,
    true_positive_rate,
    variety,
)
from bundle.auditing.orientations import TransformedCopies
from bundle.auditing.placebo import PlaceboComparison, cohort_nearness, placebo_comparisons
from bundle.auditing.reference import EMBEDDING, VERIFIER
from bundle.auditing.resampling import (
    DRAWS,
    LEAST,
    LEAST_FOR_PERCENTILE,
    Estimate,
    bootstrap,
    estimate,
    half_samples,
    mean,
    patient_draws,
    percentile_needs_more,
    share,
)
from bundle.auditing.single_images import SingleImages, single_images
from bundle.auditing.thresholds import Threshold, calibrated_thresholds, share_above
from bundle.metrics.copies import PLANTED_CHANGES
from bundle.metrics.distribution import frechet_distance, kid

__all__ = ["COLUMNS", "HALVES", "Assessment", "Estimates", "assess", "fidelity", "measure"]

#: Sets that are measured: the cohort, and test or training images in its place.
COLUMNS = ("cohort", "test", "training")
#: Estimates by measure and column.
Estimates = dict[str, dict[str, Estimate]]

# Fewest non-members for a false positive rate of 1 %.
LEAST_FOR_RATE = 100
#: Number of random half-samples for measures of whole sets.
HALVES = 100


@dataclass(frozen=True)
class Assessment:
    """All results of an audit.

    Attributes:
        controls: controls, in the order of the report.
        figures: estimates of every measure of `bundle.auditing.catalogue`.
        per_class: estimates of the measures that apply within a class, by class name; empty without labels.
        placebo: measures of nearness with their placebo, by name; see `bundle.auditing.placebo`.
        single: images that are nearer to a training image than chance allows.
        threshold: correlation above which an image counts as a copy.
        transformed: result of the search for rotated, mirrored and inverted copies.
        farthest: name of the alteration of planted copies whose KID to the training images is the largest, and this
            KID; the audit's networks have not been tested on images beyond it.
        quantiles: 5, 25, 50, 75 and 95 % quantiles of the correlation with the nearest training image, by set.
    """

    controls: list[Control]
    figures: Estimates
    per_class: dict[str, Estimates]
    placebo: dict[str, PlaceboComparison]
    single: SingleImages
    threshold: float
    transformed: TransformedCopies
    farthest: tuple[str, float]
    quantiles: dict[str, list[float]]


def assess(
    distances: Distances,
    own: Tensor,
    labels: Tensor | None,
    class_names: Sequence[str],
    seed: int,
    transformed: TransformedCopies,
) -> Assessment:
    """Computes all controls and all measures.

    Args:
        distances: distances between the cohort and the real images; all of its steps must have been run.
        own: indices of the training images that are not extra, see `bundle.auditing.images.RealData.own`.
        labels: labels [N] of the cohort's images; None if they are unknown.
        class_names: names of the classes, in the order of the labels.
        seed: seed of the bootstrap draws and half-samples.
        transformed: result of the search for rotated, mirrored and inverted copies.
    """
    thresholds = calibrated_thresholds(distances.reference)
    threshold, sides = thresholds[EMBEDDING], distances.sides(seed)
    figures = measure(distances, sides, thresholds, seed)
    per_class = {}
    if labels is not None and len(class_names) > 1:
        for label, name in enumerate(class_names):
            known = {role: distances.real[role].labels for role in ("train", "test")} | {"cohort": labels}
            members = {role: (values == label).nonzero()[:, 0] for role, values in known.items()}
            if len(members["cohort"]):
                per_class[name] = _class_estimates(distances, sides, members, threshold, seed)
    single = single_images(distances)
    return Assessment(
        controls=run_controls(distances, own, sides["test"], figures["copy_rate"], threshold.value, single.bars, seed),
        figures=figures,
        per_class=per_class,
        placebo=placebo_comparisons(cohort_nearness(distances), distances.reference, own, seed),
        single=single,
        threshold=threshold.value,
        transformed=transformed,
        farthest=_farthest(distances),
        quantiles=_quantiles(distances, sides),
    )


def measure(distances: Distances, sides: dict[str, Side], thresholds: dict[str, Threshold], seed: int) -> Estimates:
    """Computes every measure of `bundle.auditing.catalogue` in every column.

    Args:
        distances: distances between the cohort and the real images; all of its steps must have been run.
        sides: distances of the images of each column, from `Distances.sides`.
        thresholds: thresholds of both networks, from `calibrated_thresholds`.
        seed: seed of the bootstrap draws and half-samples.
    """
    return {
        **_of_images(sides, thresholds[EMBEDDING]),
        **_authenticity(distances, sides),
        **_reidentification(distances, sides, thresholds[VERIFIER]),
        **_of_sets(distances, seed),
        **_whole_attack(distances, seed),
        **fidelity(distances, thresholds[EMBEDDING].value, {}, seed),
        "variety": _variety(distances, seed),
    }


def _percentile(values: Tensor, side: Side) -> Estimate:
    if len(values) < LEAST_FOR_PERCENTILE:
        return Estimate(reason=percentile_needs_more(len(values)), n=len(values))
    return estimate(low_percentile(values), bootstrap(values, side.draws, low_percentile), len(values))


def _too_few(size: int) -> Estimate:
    reason = f"sets of at least {LEAST} images are compared; only {size} can be had on every side"
    return Estimate(reason=reason, n=size)


def _of_images(sides: dict[str, Side], threshold: Threshold) -> Estimates:
    """Computes percentiles, means and shares of measures that are defined per image."""
    return {
        "copy_rate": {name: share_above(side.correlation, side.draws, threshold) for name, side in sides.items()},
        "dcr_p5": {name: _percentile(side.first.clamp_min(0.0), side) for name, side in sides.items()},
        "nndr_p5": {
            name: _percentile((side.first.clamp_min(0.0) / side.second.clamp_min(1e-6)).clamp_max(1.0), side)
            for name, side in sides.items()
        },
        "mml": {
            name: estimate(mean(side.lpips), bootstrap(side.lpips, side.draws, mean), len(side.lpips))
            for name, side in sides.items()
        },
        "lpips_p5": {name: _percentile(side.lpips, side) for name, side in sides.items()},
    }


def _authenticity(distances: Distances, sides: dict[str, Side]) -> Estimates:
    points = distances.reference.points[EMBEDDING]["train"]
    other = nearest_two(1.0 - points @ points.T, distances.real["train"].patients)[1]
    found = {name: share(authentic(side.first, side.index, other), side.draws) for name, side in sides.items()}
    return {"authenticity": found}


def _reidentification(distances: Distances, sides: dict[str, Side], threshold: Threshold) -> Estimates:
    patients = distances.real["train"].patients
    strangers = sides["test"]
    auc = {"test": Estimate(reason="test images are what the others are told from", n=len(strangers.verified))}
    for column in ("cohort", "training"):
        mine = sides[column]
        replicates = [
            area_under_curve(mine.verified[torch.from_numpy(a)], strangers.verified[torch.from_numpy(b)])
            for a, b in zip(mine.draws, strangers.draws, strict=True)
        ]
        value = area_under_curve(mine.verified, strangers.verified)
        auc[column] = estimate(value, np.array(replicates), len(mine.verified))
    others = {name: _other_images(side) for name, side in sides.items()}
    return {
        "other_images": others,
        "reidentified": {name: share_above(side.verified, side.draws, threshold) for name, side in sides.items()},
        "reidentification_auc": auc,
        "same_patient_named": {name: share(side.agree(patients), side.draws) for name, side in sides.items()},
    }


def _other_images(side: Side) -> Estimate:
    n = int((~side.others.isnan()).sum())
    if n < LEAST:
        reason = f"the nearest patient has several training images for {n} images only; {LEAST} are needed"
        return Estimate(reason=reason, n=n)
    return estimate(_known_mean(side.others), bootstrap(side.others, side.draws, _known_mean), n)


def _known_mean(values: Tensor) -> float:
    return float(values.nanmean())


def _of_sets(distances: Distances, seed: int) -> Estimates:
    """Computes attacks on whole sets, on half-samples of equal size in all sets and columns."""
    names = ("aa_train", "aa_hold", "privacy_loss", "gan_leaks_auc")
    test = distances.real["test"]
    sampled = distances.reference.train_sample
    n_train, n_test, n_cohort = len(sampled), len(test.pixels), len(distances.sample)
    size = min(n_train // 2, n_test // 2, n_cohort)
    if size < LEAST:
        return {name: dict.fromkeys(COLUMNS, _too_few(size)) for name in names}
    matrix = distances.lpips_of_sample()
    to_val = {role: distances.reference.lpips(role, "val").amin(dim=1) for role in ("train", "test")}
    reference = torch.cat([to_val["train"][sampled], to_val["test"]])
    random = np.random.default_rng(seed)
    values: dict[str, dict[str, list[float]]] = {name: {column: [] for column in COLUMNS} for name in names}
    for _ in range(HALVES):
        first, second = (half + n_train for half in half_samples(test.patients, size, random))
        train = torch.from_numpy(random.permutation(n_train)[:size])
        sets = {
            "cohort": torch.from_numpy(random.permutation(n_cohort)[:size]) + n_train + n_test,
            "test": first,
            "training": train[torch.from_numpy(random.integers(size, size=size))],
        }
        for column, mine in sets.items():
            # An image that was drawn twice must not count as its own neighbour.
            among = matrix[mine][:, mine].masked_fill(mine[:, None] == mine[None, :], torch.inf)
            seen, held_out = (
                adversarial_accuracy(matrix[side][:, mine], matrix[side][:, side], among) for side in (train, second)
            )
            scores = [membership_scores(matrix[side][:, mine].amin(dim=1), reference[side]) for side in (train, second)]
            found = (seen, held_out, held_out - seen, area_under_curve(*scores))
            for name, value in zip(names, found, strict=True):
                values[name][column].append(value)
    return _averaged(values, size)


def _averaged(values: dict[str, dict[str, list[float]]], size: int) -> Estimates:
    return {
        name: {column: estimate(float(np.mean(found)), np.array(found), size) for column, found in columns.items()}
        for name, columns in values.items()
    }


def _whole_attack(distances: Distances, seed: int) -> Estimates:
    """Computes the GAN-Leaks attack with the whole cohort against all training and test images."""
    roles = ("train", "test")
    nearest = distances.rows["lpips"].amin(dim=0).split([len(distances.real[role].pixels) for role in roles])
    members, others = (
        membership_scores(near, distances.reference.lpips(role, "val").amin(dim=1))
        for role, near in zip(roles, nearest, strict=True)
    )
    draws = [patient_draws(distances.real[role].patients, DRAWS, seed + n) for n, role in enumerate(roles)]
    pairs = [(members[torch.from_numpy(a)], others[torch.from_numpy(b)]) for a, b in zip(*draws, strict=True)]
    figures = {}
    for name, statistic in (("auc", area_under_curve), ("tpr", true_positive_rate)):
        if len(distances.cohort) < LEAST:
            mine = _too_few(len(distances.cohort))
        elif name == "tpr" and len(others) < LEAST_FOR_RATE:
            mine = Estimate(reason=f"1 % of {len(others)} test images is less than one image", n=len(others))
        else:
            replicates = np.array([statistic(*pair) for pair in pairs])
            mine = estimate(statistic(members, others), replicates, len(members) + len(others))
        figures[f"gan_leaks_whole_{name}"] = {
            "cohort": mine,
            "test": Estimate(reason="test images are the attack's non-members", n=len(others)),
            "training": Estimate(reason="training images are the attack's members", n=len(members)),
        }
    return figures


def fidelity(distances: Distances, threshold: float, members: dict[str, Tensor], seed: int) -> Estimates:
    """Computes the fidelity measures except variety, on half-samples of equal size.

    Args:
        distances: distances between the cohort and the real images; all of its steps must have been run.
        threshold: correlation above which two images are near-duplicates.
        members: indices of the images that are compared, by role; all of a role that is not named.
        seed: seed of the half-samples.
    """
    names = tuple(name for name in FIDELITY if name != "variety")
    features = distances.reference.features | {"cohort": distances.rows["features"]}
    points = distances.reference.points[EMBEDDING] | {"cohort": distances.rows["point"]}
    own = {role: members.get(role, torch.arange(len(features[role]))) for role in ("cohort", "train", "test")}
    patients = {role: distances.real[role].patients[own[role]] for role in ("train", "test")}
    random = np.random.default_rng(seed)
    draws = []
    for _ in range(HALVES):
        train, again = half_samples(patients["train"], len(own["train"]), random)
        test, _ = half_samples(patients["test"], len(own["test"]), random)
        cohort = torch.from_numpy(random.permutation(len(own["cohort"])))
        draws.append((own["train"][train], own["train"][again], own["test"][test], own["cohort"][cohort]))
    size = min(len(part) for draw in draws for part in draw)  # a patient with many images can make one half smaller
    if size < LEAST:
        return {name: dict.fromkeys(COLUMNS, _too_few(size)) for name in names}
    values: dict[str, dict[str, list[float]]] = {name: {column: [] for column in COLUMNS} for name in names}
    for train, again, test, cohort in draws:
        reference = features["train"][train[:size]]
        sets = {"cohort": ("cohort", cohort[:size]), "test": ("test", test[:size]), "training": ("train", again[:size])}
        for column, (role, mine) in sets.items():
            images, at = features[role][mine], points[role][mine]
            among = (at @ at.T).fill_diagonal_(-1.0).amax(dim=1)
            found = (
                kid(images, reference),
                frechet_distance(images, reference),
                *precision_recall(reference, images),
                mean(exceeds(among, threshold).double()),
            )
            for name, value in zip(names, found, strict=True):
                values[name][column].append(value)
    return _averaged(values, size)


def _variety(distances: Distances, seed: int) -> dict[str, Estimate]:
    matrix = distances.lpips_of_sample()
    sampled = distances.reference.train_sample
    n_train, n_test = len(sampled), len(distances.real["test"].pixels)
    whose = {
        "cohort": (n_train + n_test, torch.arange(len(distances.sample))),
        "test": (n_train, distances.real["test"].patients),
        "training": (0, distances.real["train"].patients[sampled]),
    }
    figures = {}
    for column, (start, patients) in whose.items():
        inner = matrix[start : start + len(patients), start : start + len(patients)]
        if len(patients) < LEAST:
            figures[column] = _too_few(len(patients))
            continue
        # Half-samples instead of draws with replacement, in which repeated images would lower the variety.
        halves = [half_samples(patients, len(patients), np.random.default_rng((seed, n)))[0] for n in range(HALVES)]
        replicates = np.array([variety(inner[half][:, half]) for half in halves])
        figures[column] = estimate(variety(inner), replicates, len(patients))
    return figures


def _class_estimates(
    distances: Distances, sides: dict[str, Side], members: dict[str, Tensor], threshold: Threshold, seed: int
) -> Estimates:
    whose = {"cohort": torch.arange(len(distances.cohort)), "test": distances.real["test"].patients}
    of_class = {column: sides[column].of(members[column], patients, seed) for column, patients in whose.items()}
    return {**_of_images(of_class, threshold), **fidelity(distances, threshold.value, members, seed)}


def _farthest(distances: Distances) -> tuple[str, float]:
    train = distances.reference.features["train"]
    reached = {name: kid(found, train) for name, found in distances.reference.read("altered_features").items()}
    name = max(reached, key=reached.__getitem__)
    return name, reached[name]


def _quantiles(distances: Distances, sides: dict[str, Side]) -> dict[str, list[float]]:
    planted = distances.reference.read(f"{EMBEDDING}_planted")
    sets = {
        "cohort": sides["cohort"].correlation,
        "test images": sides["test"].correlation,
        "altered copies": torch.cat([planted[f"{name}_correlation"] for name in PLANTED_CHANGES]),
        "exact copies": planted["exact_correlation"],
    }
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    enough = {name: values for name, values in sets.items() if len(values) >= LEAST_FOR_PERCENTILE}
    return {name: values.double().quantile(levels).tolist() for name, values in enough.items()}
