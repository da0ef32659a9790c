# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Makes the attacks of `bundle.auditing.deep.wp29` with a cohort and the real images, in kept steps."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from bundle.auditing.deep.attack import Attack
from bundle.auditing.deep.wp29 import linked, read_label, risk_attack, singled_out, singling_radius
from bundle.auditing.distances import Distances
from bundle.auditing.reference import LPIPS_MS, SQUEEZENET_MS
from bundle.auditing.resampling import LEAST, half_samples
from bundle.steps import Step, Steps, Tensors

__all__ = ["CohortAttacks"]

# Random galleries over which a rate is averaged.
GALLERIES = 20

SINGLING_OUT = (
    "Does a synthetic image hold for exactly one patient? Success: exactly one patient of a gallery is within a radius "
    "(LPIPS) that was chosen on validation images. An image of nobody singles somebody out as well: only the excess "
    "over galleries of never-seen patients counts, and even this does not say that the image shows that patient."
)
LINKABILITY = (
    "Do two parts of a patient's record lead to the same synthetic record? Success: a synthetic image is among those "
    "nearest to the left half of a patient's image and among those nearest to the right half (SqueezeNet features of "
    "the halves). It does not cover links by other images of the patient, for which the re-identification above stands."
)
INFERENCE = (
    "Can the diagnosis be read from the cohort by who holds the image without it? Success: the nearest synthetic image "
    "(LPIPS) has the patient's label. The diagnosis of never-seen patients can be read as well, which is what the "
    "cohort is for; only the excess is a loss of privacy. It does not cover attributes other than the label."
)


class CohortAttacks(Steps):
    """Singling out, linkability and inference.

    Args:
        distances: distances between the cohort and the real images, whose steps are run before.
        own: indices of the training images that are not extra.
        labels: labels [N] of the cohort; None if they are unknown.
        folder: folder that keeps the results of the steps.
        seed: seed of galleries and halves.
    """

    def __init__(self, distances: Distances, own: Tensor, labels: Tensor | None, folder: object, seed: int) -> None:
        super().__init__(str(folder))
        self.distances, self.own, self.labels, self.seed = distances, own, labels, seed
        self.real = distances.real

    def steps(self) -> Iterator[Step]:
        """Yields the steps in order."""
        n_val, n_cohort = len(self.real["val"].pixels), len(self.distances.cohort)
        yield self.step("to_val", LPIPS_MS * (n_val + n_cohort), self._to_val)
        halves = 2 * SQUEEZENET_MS * (len(self.own) + len(self.real["test"].pixels) + n_cohort)
        yield self.step("halves", halves, self._halves)

    def attacks(self) -> list[Attack]:
        """Returns the three attacks, after their steps have been run."""
        return [self._singling_out(), self._linkability(), self._inference()]

    def _to_val(self) -> Tensors:
        return {"lpips": self.distances.reference.measure_lpips(self.distances.cohort, self.real["val"].pixels)}

    def _halves(self) -> Tensors:
        sets = {"members": self.real["train"].pixels[self.own], "unseen": self.real["test"].pixels}
        sets["cohort"] = self.distances.cohort
        middle = sets["cohort"].shape[2] // 2
        measure = self.distances.reference.measure_features
        return {
            f"{name}_{side}": measure(part.contiguous())
            for name, pixels in sets.items()
            for side, part in (("left", pixels[:, :, :middle]), ("right", pixels[:, :, -middle:]))
        }

    def _patients(self, name: str) -> Tensor:
        return self.real["train"].patients[self.own] if name == "members" else self.real["test"].patients

    def _columns(self, name: str) -> Tensor:
        """Returns the places of a role's images among those with which synthetic images are compared."""
        n_train = len(self.real["train"].pixels)
        return self.own if name == "members" else torch.arange(n_train, n_train + len(self.real["test"].pixels))

    def _singling_out(self) -> Attack:
        lpips, to_val = self.distances.rows["lpips"], self.read("to_val")["lpips"]
        reference = self.distances.reference
        members, unseen = self._patients("members"), self._patients("unseen")
        size = min(to_val.shape[1], len(unseen) // 2, len(members) // 2)
        if size < LEAST:
            reason = f"it takes galleries of at least {LEAST} images; {size} can be had of never-seen patients"
            return Attack("singling_out", "Singling out", SINGLING_OUT, reason=reason)
        radius = singling_radius(to_val[:, :size])
        radius_of_copies = singling_radius(reference.lpips("train", "val")[self.own][:, :size])
        among = reference.lpips("train", "train")
        random = np.random.default_rng(self.seed)
        found: dict[str, list[float]] = {name: [] for name in ("members", "unseen", "half", "other_half", "copied")}
        for _ in range(GALLERIES):
            seen = half_samples(members, size, random)[0]
            first, second = half_samples(unseen, size, random)
            for name, role, part in (
                ("members", "members", seen),
                ("unseen", "unseen", first),
                ("half", "unseen", first),
                ("other_half", "unseen", second),
            ):
                near = lpips[:, self._columns(role)[part]]
                found[name].append(_share(singled_out(near, self._patients(role)[part], radius)))
            copies = self.own[seen]
            found["copied"].append(_share(singled_out(among[copies][:, copies], members[seen], radius_of_copies)))
        rates = {name: float(np.mean(values)) for name, values in found.items()}
        # One split of the never-seen patients: over many, both halves would have the same mean.
        rates |= {name: found[name][0] for name in ("half", "other_half")}
        # As few cases as the galleries have images, since these are drawn as well.
        n = min(size, self.distances.n_groups or len(self.distances.cohort))
        sizes = dict.fromkeys(rates, n) | {"copied": size}
        return risk_attack("singling_out", "Singling out", SINGLING_OUT, rates, sizes, None)

    def _linkability(self) -> Attack:
        halves, n = self.read("halves"), len(self.distances.cohort)
        k = max(1, n // 100)

        def links(name: str, left: Tensor, right: Tensor) -> Tensor:
            return linked(torch.cdist(halves[f"{name}_left"], left), torch.cdist(halves[f"{name}_right"], right), k)

        found = {name: links(name, halves["cohort_left"], halves["cohort_right"]) for name in ("members", "unseen")}
        copies = torch.from_numpy(np.random.default_rng(self.seed).permutation(len(self.own))[:n])
        sides = (halves["members_left"][copies], halves["members_right"][copies])
        guess = 1.0 - math.comb(n - k, k) / math.comb(n, k)
        return self._of_patients(
            "linkability", "Linkability", LINKABILITY, found, links("members", *sides)[copies], copies, guess
        )

    def _inference(self) -> Attack:
        labels, lpips = self.labels, self.distances.rows["lpips"]
        if labels is None:
            return Attack("inference", "Inference", INFERENCE, reason="the cohort has no labels")
        train, test = self.real["train"].labels[self.own], self.real["test"].labels
        mine = {"members": train, "unseen": test}
        found = {name: read_label(lpips[:, self._columns(name)].T, labels, mine[name]) for name in mine}
        # Every member is the nearest image to itself.
        copies = torch.arange(len(self.own))
        among = self.distances.reference.lpips("train", "train")[self.own][:, self.own]
        copied = read_label(among, train, train)
        guess = float(train.bincount().max()) / len(train)
        return self._of_patients("inference", "Inference", INFERENCE, found, copied, copies, guess)

    def _of_patients(
        self,
        key: str,
        title: str,
        question: str,
        found: dict[str, Tensor],
        copied: Tensor,
        copies: Tensor,
        naive: float,
    ) -> Attack:
        """Reports an attack that succeeds or fails for each real image; the cases are the patients."""
        unseen = self._patients("unseen")
        halves = half_samples(unseen, len(unseen), np.random.default_rng(self.seed))
        rates = {name: _share(values) for name, values in found.items()} | {"copied": _share(copied)}
        sizes = {name: _count(self._patients(name)) for name in found}
        sizes["copied"] = _count(self._patients("members")[copies])
        for number, name in enumerate(("half", "other_half")):
            part = halves[number]
            rates[name], sizes[name] = _share(found["unseen"][part]), _count(unseen[part])
        return risk_attack(key, title, question, rates, sizes, naive)


def _share(marked: Tensor) -> float:
    return float(marked.double().mean())


def _count(patients: Tensor) -> int:
    return len(patients.unique())
