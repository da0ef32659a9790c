# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Distances between synthetic and real images, computed in steps that are kept on disk; all measures use them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bundle.auditing.images import RealImages
from bundle.auditing.measures import nearest_two
from bundle.auditing.reference import (
    ALIGNED_MS,
    BLOCK,
    EMBED_MS,
    EMBEDDING,
    LOCAL_MS,
    LPIPS_MS,
    SQUEEZENET_MS,
    VERIFIER,
    Reference,
)
from bundle.auditing.resampling import DRAWS, patient_draws
from bundle.steps import Step, Steps, Tensors

__all__ = ["Distances", "Side"]


@dataclass(frozen=True)
class Side:
    """Distances of N images of one set to the training images; tensors are [N].

    Attributes:
        correlation: highest correlation with a training image, in the embedding.
        first: distance to this training image, 1 - correlation.
        second: distance to the nearest training image of another patient.
        index: index of the nearest training image.
        lpips: LPIPS to the training image that is nearest by LPIPS.
        verified: highest logit of the verifier with a training image.
        verified_index: index of the training image with this logit.
        others: AUC with which the verifier distinguishes other images of the nearest patient from those of all other
            patients (`bundle.auditing.measures.other_images_auc`); NaN if there are none.
        draws: bootstrap draws of patients, as indices into the set.
    """

    correlation: Tensor
    first: Tensor
    second: Tensor
    index: Tensor
    lpips: Tensor
    verified: Tensor
    verified_index: Tensor
    others: Tensor
    draws: list[NDArray[np.int64]]

    def agree(self, patients: Tensor) -> Tensor:
        """Returns whether embedding and verifier find the same patient, bool [N]; patients are the training images'."""
        return patients[self.index] == patients[self.verified_index]

    def of(self, members: Tensor, patients: Tensor, seed: int) -> Side:
        """Returns the side of a subset, with new bootstrap draws.

        Args:
            members: indices of the subset.
            patients: patient number [N] of each image of the whole set.
            seed: seed of the bootstrap draws.
        """
        tensors = {entry.name: getattr(self, entry.name)[members] for entry in fields(self) if entry.name != "draws"}
        return Side(**tensors, draws=patient_draws(patients[members], DRAWS, seed))


class Distances(Steps):
    """Distances between synthetic and real images.

    Args:
        cohort: uint8 pixels of the synthetic images, [N, H, W] or [N, H, W, 3].
        reference: real images and their features.
        folder: folder that keeps the results of the steps.
        seed: seed of the choice of ``sample``.
        groups: group number [N] of each image, from 0; bootstrap draws take the images of a group, such as those of one
            path, together. None puts every image in its own group.
        n_groups: number of groups, see `bundle.auditing.resampling.patient_draws`.

    Attributes:
        sample: indices [n] of the synthetic images whose pairwise distances are computed, n <= number of test images.
    """

    def __init__(
        self,
        cohort: Tensor,
        reference: Reference,
        folder: str | os.PathLike[str],
        seed: int,
        groups: Tensor | None = None,
        n_groups: int | None = None,
    ) -> None:
        super().__init__(folder)
        self.cohort = cohort
        self.reference = reference
        self.n_groups = n_groups
        self.groups = torch.arange(len(cohort)) if groups is None else groups
        random = torch.Generator().manual_seed(seed)
        self.sample = torch.randperm(len(cohort), generator=random)[: len(reference.real["test"].pixels)]

    @property
    def real(self) -> dict[str, RealImages]:
        """Real images of the roles ``train``, ``val`` and ``test``."""
        return self.reference.real

    def steps(self) -> Iterator[Step]:
        """Yields the steps in order; those of the reference must be run before."""
        yield from self.block_steps()
        yield self.within_step()

    def block_steps(self) -> Iterator[Step]:
        """Yields the steps that compare the synthetic images with the real ones, block by block."""
        n_real = sum(len(self.real[role].pixels) for role in ("train", "test"))
        for number, block in enumerate(self.cohort.split(BLOCK)):
            cost = (2 * EMBED_MS + SQUEEZENET_MS) * len(block) + LPIPS_MS * (len(block) + n_real)
            yield self.step(f"cohort_{number:04d}", cost, lambda block=block: self._block(block))  # type: ignore[misc]

    def search_step(self) -> Step:
        """Returns the step that seeks training images in the synthetic images, in part and aligned, for audits only."""
        cost = (LOCAL_MS + ALIGNED_MS) * len(self.cohort)
        return self.step("search", cost, lambda: self.reference.search(self.cohort, self.rows["point"]))

    @cached_property
    def found(self) -> Tensors:
        """What `search_step` found for all N images, see `Reference.search`."""
        return self.read("search")

    def within_step(self) -> Step:
        """Returns the step that computes the distances within ``sample``."""
        return self.step("within", LPIPS_MS * len(self.sample), self._within)

    @cached_property
    def rows(self) -> Tensors:
        """The results of the block steps for all N synthetic images.

        ``point`` [N, D] is the embedding; ``correlation`` and ``index`` [N] belong to the most similar training image,
        ``verified`` and ``verified_index`` to that of the verifier, whose features are ``seen`` [N, D]; ``others`` is
        that of `Side`; ``features`` [N, F] are SqueezeNet features; ``lpips`` [N, train + test] are the distances to
        every training and test image.
        """
        blocks = [self.read(f"cohort_{number:04d}") for number in range(len(self.cohort.split(BLOCK)))]
        return {key: torch.cat([block[key] for block in blocks]) for key in blocks[0]}

    @cached_property
    def within(self) -> Tensor:
        """LPIPS [n, n] within ``sample``."""
        return self.read("within")["distances"]

    def of(self, members: Tensor, folder: str | os.PathLike[str], seed: int) -> Distances:
        """Returns a subset of the images as a cohort, for which only `within_step` remains to be run.

        Args:
            members: indices [n] of the subset.
            folder: folder that keeps the result of this step.
            seed: seed of the choice of ``sample``.
        """
        part = Distances(self.cohort[members], self.reference, folder, seed, self.groups[members], self.n_groups)
        part.__dict__["rows"] = {key: value[members] for key, value in self.rows.items()}
        return part

    def lpips_to_train(self) -> Tensor:
        """Returns LPIPS [N] from each synthetic image to the nearest training image."""
        return self.rows["lpips"][:, : len(self.real["train"].pixels)].amin(dim=1)

    def lpips_of_sample(self) -> Tensor:
        """Returns LPIPS [S, S] among the training sample, all test images and the synthetic sample, in this order."""
        n_train = len(self.real["train"].pixels)
        real = torch.cat([self.reference.train_sample, torch.arange(n_train, n_train + len(self.real["test"].pixels))])
        across = self.rows["lpips"][self.sample][:, real]
        upper = torch.cat([self.reference.among[real][:, real], across.T], dim=1)
        return torch.cat([upper, torch.cat([across, self.within], dim=1)])

    def sides(self, seed: int) -> dict[str, Side]:
        """Returns the sides of the cohort, of the test images, and of as many training images, drawn with replacement.

        Args:
            seed: seed of the choice of training images and of the bootstrap draws.
        """
        train, test = self.real["train"], self.real["test"]
        points, verifier = self.reference.points[EMBEDDING], self.reference.points[VERIFIER]
        drawn = torch.from_numpy(np.random.default_rng(seed).integers(len(train.pixels), size=len(test.pixels)))
        sets = {
            "cohort": (
                self.rows["point"],
                (self.rows["verified"], self.rows["verified_index"]),
                self.rows["others"],
                self.lpips_to_train(),
                self.groups,
            ),
            "test": (
                points["test"],
                (verifier["test_correlation"], verifier["test_index"]),
                self.reference.others(verifier["test"], points["test_index"]),
                self.reference.lpips("test", "train").amin(dim=1),
                test.patients,
            ),
            "training": (
                points["train"][drawn],
                self.reference.network(VERIFIER).nearest(verifier["train"][drawn], verifier["train"]),
                self.reference.others(verifier["train"][drawn], drawn),
                torch.zeros(len(drawn)),  # a training image is its own nearest training image
                train.patients[drawn],
            ),
        }
        sides = {}
        for number, (name, (at, verified, others, near, patients)) in enumerate(sets.items()):
            first, second, index = nearest_two(1.0 - at @ points["train"].T, train.patients)
            draws = patient_draws(patients, DRAWS, seed + number, self.n_groups if name == "cohort" else None)
            sides[name] = Side(1.0 - first, first, second, index, near, *verified, others, draws)
        return sides

    def _block(self, block: Tensor) -> Tensors:
        reference = self.reference
        point = reference.predict(EMBEDDING, block)
        correlation, index = reference.network(EMBEDDING).nearest(point, reference.points[EMBEDDING]["train"])
        seen = reference.predict(VERIFIER, block)
        verified, verified_index = reference.network(VERIFIER).nearest(seen, reference.points[VERIFIER]["train"])
        real = torch.cat([self.real["train"].pixels, self.real["test"].pixels])
        return {
            "point": point,
            "correlation": correlation,
            "index": index,
            "verified": verified,
            "verified_index": verified_index,
            "others": reference.others(seen, index),
            "seen": seen,
            "features": reference.measure_features(block),
            "lpips": reference.measure_lpips(block, real),
        }

    def _within(self) -> Tensors:
        return {"distances": self.reference.measure_lpips(self.cohort[self.sample])}
