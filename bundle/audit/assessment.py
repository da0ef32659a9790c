# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""From distances to figures: every measure of the cohort beside the same of test images and of training images.

Test images show what a figure is where nobody's privacy is touched, training images what it is where everybody's is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bundle.audit.distances import Distances
from bundle.audit.measures import (
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
from bundle.audit.resampling import Figure, bootstrap, figure, half_samples, patient_draws, share
from bundle.metrics.copies import PERCENTILE, PLANTED_CHANGES, copy_threshold
from bundle.metrics.distribution import frechet_distance, kid

__all__ = ["COLUMNS", "Assessment", "Control", "Row", "assess"]

#: Whose figure a row shows: the cohort's, that of images that are nobody's copy, that of images that all are.
COLUMNS = ("cohort", "test", "training")

LEAST_FOR_PERCENTILE = 20
LEAST_FOR_SET = 20
LEAST_FOR_RATE = 100
#: Draws of patients for an interval, and draws of halves for figures of whole sets.
DRAWS, HALVES = 1000, 100
#: Shares of the planted copies that must be found.
EXACT_FOUND, ALTERED_FOUND = 0.95, 0.90

EMBEDDING, VERIFIER = "audit_embedding", "audit_verifier"


@dataclass(frozen=True)
class Row:
    """One measure.

    Attributes:
        key: its name in results.json.
        title: its name in the report.
        space: where its distances or features are taken.
        ideal: what the figure is for a cohort that betrays nobody and looks real, in words.
        figures: by `COLUMNS`; a column may be absent where it would have no meaning.
    """

    key: str
    title: str
    space: str
    ideal: str
    figures: dict[str, Figure]


@dataclass(frozen=True)
class Control:
    """One trial of the instrument.

    Attributes:
        key: its name in results.json.
        title: its name in the report.
        figure: the share that was found.
        required: in words.
        passed: None where it is shown and decides nothing by itself.
    """

    key: str
    title: str
    figure: Figure
    required: str
    passed: bool | None


@dataclass
class Assessment:
    """All figures of an audit.

    Attributes:
        controls: trials of the instrument.
        privacy: measures of privacy.
        fidelity: measures of how real and how various the images look.
        per_class: the same by class name, where labels are known.
        excess: one-sided 95 % lower bound of the cohort's copy rate less the test images'.
        nearer: synthetic images that are more alike a training image than every test image is.
        threshold: correlation above which an image is a copy.
        quantiles: of the correlation with the nearest training image: 5, 25, 50, 75 and 95 %, by set.
    """

    controls: list[Control]
    privacy: list[Row]
    fidelity: list[Row]
    per_class: dict[str, list[Row]]
    excess: float
    nearer: int
    threshold: float
    quantiles: dict[str, list[float]]


@dataclass(frozen=True)
class _Side:
    """What is known of each image of one column, towards the training images."""

    alike: Tensor
    first: Tensor
    second: Tensor
    index: Tensor
    lpips: Tensor
    verified: Tensor
    verified_index: Tensor
    draws: list[NDArray[np.int64]]

    def of(self, members: Tensor, patients: Tensor, seed: int) -> _Side:
        """Returns the same of some members, [N] indices, with draws of their own."""
        return _Side(
            alike=self.alike[members],
            first=self.first[members],
            second=self.second[members],
            index=self.index[members],
            lpips=self.lpips[members],
            verified=self.verified[members],
            verified_index=self.verified_index[members],
            draws=patient_draws(patients[members], DRAWS, seed),
        )


def assess(distances: Distances, labels: Tensor | None, class_names: Sequence[str], seed: int) -> Assessment:
    """Computes every measure and every control.

    Args:
        distances: all steps of it have been run.
        labels: of the cohort's images, [N]; None where they are not known.
        class_names: of the labels.
        seed: of all draws.

    Returns:
        The figures.
    """
    real = distances.real
    points, verifier = distances.read(EMBEDDING), distances.read(VERIFIER)
    patients = real["train"].patients
    threshold, verified = copy_threshold(points["val_alike"]), copy_threshold(verifier["val_alike"])
    sides = _sides(distances, points, verifier, seed)
    thresholds = (threshold, verified)
    other = nearest_two(1.0 - points["train"] @ points["train"].T, patients)[1]
    near = exceeds(sides["cohort"].alike, threshold).double(), exceeds(sides["test"].alike, threshold).double()
    excess = bootstrap(near[0], sides["cohort"].draws, _mean) - bootstrap(near[1], sides["test"].draws, _mean)
    n_classes = len(class_names)
    per_class = {}
    if labels is not None:
        for label, name in enumerate(class_names):
            members = {
                "cohort": (labels == label).nonzero()[:, 0],
                "test": (real["test"].labels == label).nonzero()[:, 0],
            }
            if n_classes > 1 and len(members["cohort"]):
                per_class[name] = _class_rows(distances, sides, members, label, thresholds, seed)
    return Assessment(
        _controls(distances, points, verifier, thresholds, sides, seed),
        _privacy(distances, points, verifier, sides, thresholds, other, seed),
        [*_fidelity(distances, points, threshold, None, seed), _variety(distances, seed)],
        per_class,
        float(np.quantile(excess, 0.05)),
        int((sides["cohort"].alike > sides["test"].alike.max()).sum()),
        threshold,
        _quantiles(distances, points, sides),
    )


def _mean(values: Tensor) -> float:
    return float(values.mean())


def _sides(distances: Distances, points: dict[str, Tensor], verifier: dict[str, Tensor], seed: int) -> dict[str, _Side]:
    train, test = distances.real["train"], distances.real["test"]
    n = len(distances.cohort)
    lpips = torch.empty(n)
    for block, found in distances.blocks():
        lpips[block] = found["to_train"]
    resampled = torch.from_numpy(np.random.default_rng(seed).integers(len(train.pixels), size=len(test.pixels)))
    at = {
        "cohort": (points["cohort"], verifier["cohort"], lpips, torch.arange(n)),
        "test": (points["test"], verifier["test"], distances.read("lpips_real")["test_to_train"], test.patients),
        "training": (
            points["train"][resampled],
            verifier["train"][resampled],
            torch.zeros(len(resampled)),  # each is its own nearest training image
            train.patients[resampled],
        ),
    }
    network = distances.networks[VERIFIER]
    sides = {}
    for offset, (column, (mine, verifying, near, whose)) in enumerate(at.items()):
        alikeness = mine @ points["train"].T
        first, second, index = nearest_two(1.0 - alikeness, train.patients)
        likely, likely_index = network.nearest(verifying, verifier["train"])  # type: ignore[operator]
        draws = patient_draws(whose, DRAWS, seed + offset)
        sides[column] = _Side(1.0 - first, first, second, index, near, likely, likely_index, draws)
    return sides


def _controls(
    distances: Distances,
    points: dict[str, Tensor],
    verifier: dict[str, Tensor],
    thresholds: tuple[float, float],
    sides: dict[str, _Side],
    seed: int,
) -> list[Control]:
    planted = distances.read(f"{EMBEDDING}_planted")
    patients = distances.real["train"].patients
    draws = patient_draws(patients[distances.planted], DRAWS, seed)
    found = {name: exceeds(planted[f"{name}_alike"], thresholds[0]) for name in ("exact", *PLANTED_CHANGES)}
    exact = share(found["exact"], draws)
    all_changes = torch.stack([found[name] for name in PLANTED_CHANGES], dim=1).double()
    replicates = bootstrap(all_changes, draws, _mean)
    altered = figure(_mean(all_changes), replicates, all_changes.numel())
    rate = 1.0 - PERCENTILE / 100.0
    strangers = share(exceeds(sides["test"].alike, thresholds[0]), sides["test"].draws)
    lower = float(np.quantile(_false_alarms(distances, points, sides, seed), 0.05))
    controls = [
        Control(
            "planted_exact", "exact copies of training images, found", exact, f"at least {EXACT_FOUND:.0%}",
            exact.value >= EXACT_FOUND,
        ),
        Control(
            "planted_altered", "altered copies of training images, found, all kinds together", altered,
            f"at least {ALTERED_FOUND:.0%}", altered.value >= ALTERED_FOUND,
        ),
        Control(
            "test_as_cohort", "test images as a cohort, taken for copies", strangers,
            f"{rate:.0%}, the set rate: not above it by more than chance (one-sided 95 %)", lower <= rate,
        ),
        Control(
            "training_as_cohort", "training images, resampled, as a cohort, taken for copies",
            share(exceeds(sides["training"].alike, thresholds[0]), sides["training"].draws),
            f"at least {EXACT_FOUND:.0%}",
            float(exceeds(sides["training"].alike, thresholds[0]).double().mean()) >= EXACT_FOUND,
        ),
    ]  # fmt: skip
    for name in PLANTED_CHANGES:
        controls.append(Control(f"planted_{name}", f"copies {name}, found", share(found[name], draws), "shown", None))
    verifying = distances.read(f"{VERIFIER}_planted")
    owners = patients[distances.planted]
    named = torch.stack([patients[verifying[f"{name}_index"]] == owners for name in PLANTED_CHANGES], dim=1).double()
    controls.append(
        Control(
            "verifier_precision_at_1",
            "altered copies whose patient the verifier ranks first (precision at 1)",
            figure(_mean(named), bootstrap(named, draws, _mean), named.numel()),
            "shown",
            None,
        )
    )
    return controls


def _false_alarms(
    distances: Distances, points: dict[str, Tensor], sides: dict[str, _Side], seed: int
) -> NDArray[np.float64]:
    """Copy rates of drawn test images by thresholds of drawn val images: both are but samples."""
    val = patient_draws(distances.real["val"].patients, DRAWS, seed + 7)
    thresholds = bootstrap(points["val_alike"], val, copy_threshold)
    alike = sides["test"].alike
    pairs = zip(sides["test"].draws, thresholds, strict=True)
    return np.array([float(exceeds(alike[torch.from_numpy(draw)], level).double().mean()) for draw, level in pairs])


def _privacy(
    distances: Distances,
    points: dict[str, Tensor],
    verifier: dict[str, Tensor],
    sides: dict[str, _Side],
    thresholds: tuple[float, float],
    other: Tensor,
    seed: int,
) -> list[Row]:
    rows = _nearest_rows(sides, thresholds[0])
    rows.append(
        Row(
            "authenticity", "Authenticity: share that is no noisy copy", "contrastive embedding",
            "not below test images'",
            {
                column: share(authentic(side.first, side.index, other), side.draws)
                for column, side in sides.items()
            },
        )
    )  # fmt: skip
    rows += _set_privacy(distances, seed)
    patients = distances.real["train"].patients
    reidentified = {name: share(exceeds(side.verified, thresholds[1]), side.draws) for name, side in sides.items()}
    rows.append(
        Row(
            "reidentified", "Re-identified: share that the verifier takes for a training patient", "Siamese verifier",
            "not above test images'", reidentified,
        )
    )  # fmt: skip
    auc = {}
    for column in ("cohort", "training"):
        mine, strangers = sides[column], sides["test"]
        replicates = [
            area_under_curve(mine.verified[torch.from_numpy(a)], strangers.verified[torch.from_numpy(b)])
            for a, b in zip(mine.draws, strangers.draws, strict=True)
        ]
        auc[column] = figure(
            area_under_curve(mine.verified, strangers.verified), np.array(replicates), len(mine.verified)
        )
    auc["test"] = Figure(reason="test images are what the others are told from", n=len(sides["test"].verified))
    rows.append(
        Row(
            "reidentification_auc", "Re-identification: AUC of the verifier's score against test images'",
            "Siamese verifier", "0.5 or below", auc,
        )
    )  # fmt: skip
    agree = {
        column: share(patients[side.index] == patients[side.verified_index], side.draws)
        for column, side in sides.items()
    }
    rows.append(
        Row(
            "same_patient_named", "Share of which embedding and verifier name the same patient",
            "contrastive embedding, Siamese verifier", "not above test images'", agree,
        )
    )  # fmt: skip
    return rows


def _nearest_rows(sides: dict[str, _Side], threshold: float) -> list[Row]:
    embedding, lpips = "contrastive embedding, 1 - correlation", "LPIPS, SqueezeNet 1.1"
    return [
        Row(
            "copy_rate", "Copy rate", "contrastive embedding", "not above test images'",
            {name: share(exceeds(side.alike, threshold), side.draws) for name, side in sides.items()},
        ),
        Row(
            "dcr_p5", "Distance to the closest record (DCR), 5th percentile", embedding, "not below test images'",
            {name: _percentile(side.first, side) for name, side in sides.items()},
        ),
        Row(
            "nndr_p5", "Nearest-neighbour distance ratio (NNDR), 5th percentile", embedding, "not below test images'",
            {name: _percentile(_ratio(side), side) for name, side in sides.items()},
        ),
        Row(
            "mml", "mmL: mean LPIPS to the nearest training image", lpips, "not below test images'",
            {name: figure(_mean(side.lpips), bootstrap(side.lpips, side.draws, _mean), len(side.lpips))
             for name, side in sides.items()},
        ),
        Row(
            "lpips_p5", "LPIPS to the nearest training image, 5th percentile", lpips, "not below test images'",
            {name: _percentile(side.lpips, side) for name, side in sides.items()},
        ),
    ]  # fmt: skip


def _ratio(side: _Side) -> Tensor:
    return (side.first.clamp_min(0.0) / side.second.clamp_min(1e-6)).clamp(0.0, 1.0)


def _percentile(values: Tensor, side: _Side) -> Figure:
    if len(values) < LEAST_FOR_PERCENTILE:
        reason = f"a 5th percentile needs at least {LEAST_FOR_PERCENTILE} images; there are {len(values)}"
        return Figure(reason=reason, n=len(values))
    return figure(low_percentile(values), bootstrap(values, side.draws, low_percentile), len(values))


def _set_privacy(distances: Distances, seed: int) -> list[Row]:
    """Measures of sets: on halves of the test patients, as many images in every set and every column."""
    test = distances.real["test"]
    n_train, n_test, n_cohort = len(distances.train_sample), len(test.pixels), len(distances.sample)
    size = min(n_train // 2, n_test // 2, n_cohort)
    lpips = "LPIPS, SqueezeNet 1.1"
    names = {
        "aa_train": ("Nearest-neighbour adversarial accuracy, training images", "not below that of held-out images"),
        "aa_hold": ("Nearest-neighbour adversarial accuracy, held-out images", "0.5: cannot be told from real ones"),
        "privacy_loss": ("Privacy loss: the second less the first", "0 or below"),
        "gan_leaks_auc": ("GAN-Leaks, calibrated: AUC", "0.5 or below"),
    }
    titles = {key: (title, lpips, ideal) for key, (title, ideal) in names.items()}
    if size < LEAST_FOR_SET:
        reason = f"sets of at least {LEAST_FOR_SET} images are compared; only {size} can be had on every side"
        nothing = dict.fromkeys(COLUMNS, Figure(reason=reason, n=size))
        rows = [Row(key, *title, nothing) for key, title in titles.items()]
        return rows + _whole_attack(distances, seed)
    matrix = distances.read("lpips_sample")["distances"]
    real = distances.read("lpips_real")
    reference = torch.cat([real["train_to_val"][distances.train_sample], real["test_to_val"]])
    random = np.random.default_rng(seed)
    values: dict[str, dict[str, list[float]]] = {key: {column: [] for column in COLUMNS} for key in names}
    for _ in range(HALVES):
        first, second = (half + n_train for half in half_samples(test.patients, size, random))
        train = torch.from_numpy(random.permutation(n_train)[:size])
        sets = {
            "cohort": torch.from_numpy(random.permutation(n_cohort)[:size]) + n_train + n_test,
            "test": first,
            "training": train[torch.from_numpy(random.integers(size, size=size))],
        }
        within = [matrix[side][:, side] for side in (train, second)]
        for column, mine in sets.items():
            among = matrix[mine][:, mine]
            if column == "training":  # the same image drawn twice is no neighbour of itself
                among = among.masked_fill(mine[:, None] == mine[None, :], torch.inf).fill_diagonal_(0.0)
            accuracies = [
                adversarial_accuracy(matrix[side][:, mine], inner, among)
                for side, inner in zip((train, second), within, strict=True)
            ]
            values["aa_train"][column].append(accuracies[0])
            values["aa_hold"][column].append(accuracies[1])
            values["privacy_loss"][column].append(accuracies[1] - accuracies[0])
            scores = [membership_scores(matrix[side][:, mine].amin(dim=1), reference[side]) for side in (train, second)]
            values["gan_leaks_auc"][column].append(area_under_curve(*scores))
    rows = [
        Row(key, *titles[key], {name: figure(float(np.mean(found)), np.array(found), size)
                                for name, found in values[key].items()})
        for key in titles
    ]  # fmt: skip
    return rows + _whole_attack(distances, seed)


def _whole_attack(distances: Distances, seed: int) -> list[Row]:
    """GAN-Leaks with all synthetic images against all training images."""
    train, test = distances.real["train"], distances.real["test"]
    blocks = [found for _, found in distances.blocks()]
    real = distances.read("lpips_real")
    members, others = (
        membership_scores(torch.stack([block[f"from_{role}"] for block in blocks]).amin(dim=0), real[f"{role}_to_val"])
        for role in ("train", "test")
    )
    draws = [
        (torch.from_numpy(a), torch.from_numpy(b))
        for a, b in zip(
            patient_draws(train.patients, DRAWS, seed), patient_draws(test.patients, DRAWS, seed + 1), strict=True
        )
    ]
    nothing = Figure(reason="test images are the attack's non-members", n=len(others))
    no_sense = Figure(reason="training images are the attack's members", n=len(members))
    rows = []
    titles = {
        "gan_leaks_whole_auc": ("GAN-Leaks, calibrated, whole cohort: AUC", "0.5 or below", area_under_curve),
        "gan_leaks_whole_tpr": ("the same: members found at 1 % false alarms", "0.01", true_positive_rate),
    }
    for key, (title, ideal, statistic) in titles.items():
        if key.endswith("tpr") and len(others) < LEAST_FOR_RATE:
            reason = f"1 % of {len(others)} test images is less than one image"
            mine = Figure(reason=reason, n=len(others))
        else:
            replicates = np.array([statistic(members[a], others[b]) for a, b in draws])
            mine = figure(statistic(members, others), replicates, len(members) + len(others))
        figures = {"cohort": mine, "test": nothing, "training": no_sense}
        rows.append(Row(key, title, "LPIPS, SqueezeNet 1.1", ideal, figures))
    return rows


def _fidelity(
    distances: Distances, points: dict[str, Tensor], threshold: float, members: dict[str, Tensor] | None, seed: int
) -> list[Row]:
    """Measures of whole sets against training images, on halves by patient, as many images in every set.

    Args:
        distances: all steps.
        points: of the embedding.
        threshold: of a copy.
        members: indices of the images of one class, by ``cohort``, ``train`` and ``test``; None takes all.
        seed: of the draws.
    """
    features = distances.read("features")
    roles = ("cohort", "train", "test")
    if members is None:
        members = {role: torch.arange(len(features[role])) for role in roles}
    patients = {role: distances.real[role].patients[members[role]] for role in ("train", "test")}
    size = min(len(members["cohort"]), len(members["test"]) // 2, len(members["train"]) // 2)
    space = "SqueezeNet 1.1 features"
    names = {
        "kid": ("KID to training images", space, "near test images'"),
        "frechet": ("Fréchet distance to training images", space, "near test images'"),
        "precision": ("Precision: share within the reach of training images", space, "near test images'"),
        "recall": ("Recall: share of training images within reach", space, "near test images'"),
        "duplicates": (
            "Collapse: share with a near-duplicate in its own set", "contrastive embedding", "near test images'"
        ),
    }  # fmt: skip
    if size < LEAST_FOR_SET:
        reason = f"sets of at least {LEAST_FOR_SET} images are compared; only {size} can be had on every side"
        return [Row(key, *text, dict.fromkeys(COLUMNS, Figure(reason=reason, n=size))) for key, text in names.items()]
    random = np.random.default_rng(seed)
    values: dict[str, dict[str, list[float]]] = {key: {column: [] for column in COLUMNS} for key in names}
    for _ in range(HALVES):
        train, again = (members["train"][half] for half in half_samples(patients["train"], size, random))
        test, _ = (members["test"][half] for half in half_samples(patients["test"], size, random))
        n = min(map(len, (train, again, test)))
        cohort = members["cohort"][torch.from_numpy(random.permutation(len(members["cohort"]))[:n])]
        reference = features["train"][train[:n]]
        sets = {"cohort": ("cohort", cohort), "test": ("test", test[:n]), "training": ("train", again[:n])}
        for column, (role, mine) in sets.items():
            found = features[role][mine]
            precision, recall = precision_recall(reference, found)
            among = (points[role][mine] @ points[role][mine].T).fill_diagonal_(-1.0).amax(dim=1)
            values["kid"][column].append(kid(found, reference))
            values["frechet"][column].append(frechet_distance(found, reference))
            values["precision"][column].append(precision)
            values["recall"][column].append(recall)
            values["duplicates"][column].append(_mean(exceeds(among, threshold).double()))
    return [
        Row(key, *names[key], {name: figure(float(np.mean(found)), np.array(found), n)
                               for name, found in values[key].items()})
        for key in names
    ]  # fmt: skip


def _variety(distances: Distances, seed: int) -> Row:
    matrix = distances.read("lpips_sample")["distances"]
    n_train, n_test = len(distances.train_sample), len(distances.real["test"].pixels)
    whose = {
        "cohort": torch.arange(len(distances.sample)),
        "test": distances.real["test"].patients,
        "training": distances.real["train"].patients[distances.train_sample],
    }
    figures = {}
    start = {"training": 0, "test": n_train, "cohort": n_train + n_test}
    for column, patients in whose.items():
        inner = matrix[start[column] : start[column] + len(patients), start[column] : start[column] + len(patients)]
        if len(patients) < LEAST_FOR_SET:
            reason = f"variety needs at least {LEAST_FOR_SET} images; there are {len(patients)}"
            figures[column] = Figure(reason=reason, n=len(patients))
            continue
        # Halves without replacement: an image drawn twice would lower the variety of a set that is not less various.
        halves = [half_samples(patients, len(patients), np.random.default_rng((seed, n)))[0] for n in range(HALVES)]
        replicates = np.array([variety(inner[half][:, half]) for half in halves])
        figures[column] = figure(variety(inner), replicates, len(patients))
    title = "Collapse: mean LPIPS between two images"
    return Row("variety", title, "LPIPS, SqueezeNet 1.1", "near test images'", figures)


def _class_rows(
    distances: Distances,
    sides: dict[str, _Side],
    members: dict[str, Tensor],
    label: int,
    thresholds: tuple[float, float],
    seed: int,
) -> list[Row]:
    train = distances.real["train"]
    of_class = {
        "cohort": sides["cohort"].of(members["cohort"], torch.arange(len(distances.cohort)), seed),
        "test": sides["test"].of(members["test"], distances.real["test"].patients, seed + 1),
    }
    everyone = {**members, "train": (train.labels == label).nonzero()[:, 0]}
    points = distances.read(EMBEDDING)
    return _nearest_rows(of_class, thresholds[0]) + _fidelity(distances, points, thresholds[0], everyone, seed)


def _quantiles(distances: Distances, points: dict[str, Tensor], sides: dict[str, _Side]) -> dict[str, list[float]]:
    planted = distances.read(f"{EMBEDDING}_planted")
    sets: dict[str, Any] = {
        "cohort": sides["cohort"].alike,
        "test images": sides["test"].alike,
        "val images": points["val_alike"],
        "altered copies": torch.cat([planted[f"{name}_alike"] for name in PLANTED_CHANGES]),
        "exact copies": planted["exact_alike"],
    }
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    return {
        name: [] if len(values) < LEAST_FOR_PERCENTILE else values.double().quantile(levels).tolist()
        for name, values in sets.items()
    }
