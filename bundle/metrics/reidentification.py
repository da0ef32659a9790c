# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""How well a network recognises a patient in another image, such as of another visit or of the other eye.

A network that finds copies of an image compares contents; whether it also recognises patients has to be measured on
pairs of different images of one patient, of patients that it was not trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bundle.networks.standardise import resized, standardised

__all__ = [
    "CHANCE",
    "LEAST_PATIENTS",
    "MOST_IMAGES",
    "different_images",
    "is_proven",
    "proof_images",
    "recognition_of_others",
    "same_images",
]

#: Fewest patients with several images on which a proof may rest.
LEAST_PATIENTS = 20
#: Largest number of images of a proof, whose pairs are all compared.
MOST_IMAGES = 1000
#: The lower end of the AUC's interval must be above this: chance.
CHANCE = 0.5

_DRAWS = 1000
_LEVEL = 0.95
# False positive rates at which the share of recognised patients is measured, by the name of the result.
_RATES = {"found_at_1_percent": 0.01, "found_at_5_percent": 0.05}
# Side in pixels at which images are compared as such, and the least correlation of two versions of one image. Of 1000
# X-rays of the NIH, versions of one image in another collection reached 0.9997, different images of a patient 0.982.
_SIDE, _SAME = 32, 0.995
_Array = NDArray[np.float64]


def proof_images(patients: Sequence[str], seed: int) -> list[int]:
    """Chooses the images of a proof: whole patients, those with several images first, at most about `MOST_IMAGES`.

    Args:
        patients: patient of each image.
        seed: random seed of the order of the patients.

    Returns:
        Ascending indices; all of them if there are at most `MOST_IMAGES`.
    """
    members: dict[str, list[int]] = {}
    for index, patient in enumerate(patients):
        members.setdefault(patient, []).append(index)
    order = [sorted(members)[place] for place in np.random.default_rng(seed).permutation(len(members))]
    chosen: list[int] = []
    for patient in sorted(order, key=lambda one: len(members[one]) < 2):
        if not chosen or len(chosen) + len(members[patient]) <= MOST_IMAGES:
            chosen += members[patient]
    return sorted(chosen)


def is_proven(proof: Mapping[str, Any] | None) -> bool:
    """Returns whether a network was shown to recognise patients in other images better than chance.

    Args:
        proof: result of `recognition_of_others`; None if there is none. A proof without an interval, as earlier
            versions recorded it, does not count.
    """
    auc = (proof or {}).get("auc")
    if proof is None or not isinstance(auc, Mapping) or proof.get("patients_with_several", 0) < LEAST_PATIENTS:
        return False
    return bool(auc["low"] > CHANCE)


def recognition_of_others(similarity: Tensor, patients: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Measures how well different images of one patient are told from images of two patients.

    Every patient with several images has the same weight, however many images there are, and so has every pair of two
    patients. Each estimate comes with its 95 % percentile interval over a bootstrap of patients.

    Args:
        similarity: pairwise similarity of images, [N, N], of patients that no network was trained on.
        patients: patient of each image.
        seed: seed of the bootstrap.

    Returns:
        Aggregates that no single pair can be read from: ``images``, ``patients``, ``patients_with_several`` and
        ``pairs`` (of one patient) as counts; if there are such pairs and other patients, also dictionaries of
        ``value``, ``low`` and ``high``: ``auc`` of the similarity, ``found_at_1_percent`` and ``found_at_5_percent``,
        the shares of pairs of one patient that are recognised where this share of pairs of two patients is taken for
        one, and ``first``, the probability that among one image of each patient, the most similar one to an image is
        that of the same patient (chance: 1 / ``patients``).
    """
    _, owner = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    counts = np.bincount(owner).astype(np.float64)
    one, other = np.triu_indices(len(owner), k=1)
    same = owner[one] == owner[other]
    several = int((counts > 1).sum())
    found: dict[str, Any] = {
        "images": len(owner),
        "patients": len(counts),
        "patients_with_several": several,
        "pairs": int(same.sum()),
    }
    if not several or len(counts) < 2:
        return found
    mutual = ((similarity + similarity.T) / 2).double().cpu().numpy()
    pairs = _Pairs(mutual[one, other], same, owner[one], owner[other], counts)
    recognised = _identified(mutual, owner, counts)
    random = np.random.default_rng(seed)
    replicates: list[list[float]] = []
    while len(replicates) < _DRAWS:
        weight = np.bincount(random.integers(len(counts), size=len(counts)), minlength=len(counts)).astype(np.float64)
        if weight[counts > 1].any() and np.count_nonzero(weight) > 1:  # otherwise a draw without pairs of one kind
            replicates.append([*pairs.rates(weight), np.average(recognised, weights=weight[counts > 1])])
    values = [*pairs.rates(np.ones(len(counts))), recognised.mean()]
    ends = np.quantile(np.array(replicates), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], axis=0)
    for name, value, low, high in zip(("auc", *_RATES, "first"), values, *ends, strict=True):
        found[name] = {key: float(f"{end:.4g}") for key, end in (("value", value), ("low", low), ("high", high))}
    return found


class _Pairs:
    """The pairs of all images, sorted once, so that rates under other weights of the patients cost one pass.

    Args:
        values: similarity of each pair, [P].
        same: whether a pair shows one patient, [P].
        one: patient number of each pair's first image, [P].
        other: patient number of its second image, [P].
        counts: number of images of each patient.
    """

    def __init__(
        self, values: _Array, same: NDArray[np.bool_], one: NDArray[np.int64], other: NDArray[np.int64], counts: _Array
    ) -> None:
        strangers = np.flatnonzero(~same)
        strangers = strangers[np.argsort(values[strangers], kind="stable")]
        self.strangers = one[strangers], other[strangers]
        self.share = 1.0 / (counts[one[strangers]] * counts[other[strangers]])
        self.whose = one[same]
        self.part = 2.0 / (counts[self.whose] * (counts[self.whose] - 1.0))
        self.below, self.upto = (np.searchsorted(values[strangers], values[same], side) for side in ("left", "right"))

    def rates(self, weight: _Array) -> list[float]:
        """Returns the AUC and the share of recognised pairs at each of `_RATES`, under a weight of each patient."""
        strangers = self.share * weight[self.strangers[0]] * weight[self.strangers[1]]
        # Weight of all pairs of two patients below each place in their order.
        under = np.concatenate([[0.0], np.cumsum(strangers)])
        part = self.part * weight[self.whose]
        part /= part.sum()
        rates = [float(part @ (under[self.below] + under[self.upto])) / (2.0 * under[-1])]
        for rate in _RATES.values():
            bar = np.searchsorted(under, (1.0 - rate) * under[-1] * (1.0 - 1e-12))
            rates.append(float(part[self.below >= bar].sum()))
        return rates


def _identified(similarity: _Array, owner: NDArray[np.int64], counts: _Array) -> _Array:
    """Returns for each patient with several images how likely one of them is found by another, see ``first``.

    The gallery holds one image of each patient, drawn at random; the probability over these draws is exact.
    """
    patients = np.eye(len(counts))[owner] / counts
    found = []
    for patient in np.flatnonzero(counts > 1):
        mine = np.flatnonzero(owner == patient)
        chances = []
        for asked in mine:
            wanted = similarity[asked, mine[mine != asked]]
            nearer = (similarity[asked][None] < wanted[:, None]) @ patients
            nearer[:, patient] = 1.0
            chances.append(nearer.prod(axis=1).mean())
        found.append(np.mean(chances))
    return np.array(found)


def same_images(images: Tensor, others: Tensor) -> Tensor:
    """Returns which images occur among others, perhaps at another size or compressed otherwise; bool [N].

    Args:
        images: [N, C, H, W].
        others: [M, C, H, W], with the same preprocessing.
    """
    known = _compared(others)
    return torch.cat([(block @ known.T > _SAME).any(dim=1) for block in _compared(images).split(500)])


def different_images(images: Tensor, patients: Sequence[str]) -> list[int]:
    """Leaves out each image that is the same, in the sense of `same_images`, as an earlier one of its patient.

    Args:
        images: [N, C, H, W].
        patients: patient of each image.

    Returns:
        Ascending indices of the images that remain.
    """
    points = _compared(images)
    kept: dict[str, list[int]] = {}
    for index, patient in enumerate(patients):
        earlier = kept.setdefault(patient, [])
        if not (points[earlier] @ points[index] > _SAME).any():
            earlier.append(index)
    return sorted(index for indices in kept.values() for index in indices)


def _compared(images: Tensor) -> Tensor:
    points = standardised(resized(images, _SIDE)).flatten(1)
    return points / points.norm(dim=1, keepdim=True).clamp_min(1e-6)
