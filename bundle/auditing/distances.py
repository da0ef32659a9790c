# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The slow part of an audit: images pass networks, in steps that are kept on disk, so that a killed run goes on.

What concerns the real images alone (`Reference`) is apart from what concerns synthetic ones (`Distances`), so that many
cohorts can be held against the same real images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bundle.auditing.images import RealData, RealImages
from bundle.auditing.measures import nearest_two, other_images_auc
from bundle.auditing.resampling import DRAWS, patient_draws
from bundle.figures import from_uint8, to_uint8
from bundle.files import load_tensors, save_tensors, sha256_file
from bundle.metrics.copies import PLANTED_CHANGES
from bundle.metrics.features import squeezenet_features
from bundle.metrics.lpips import lpips_model, pairwise, pairwise_within
from bundle.metrics.recognition import predict
from bundle.networks.embeddings import ROWS, ContrastiveEmbedding, SiameseVerifier
from bundle.networks.precision import full_fp32

__all__ = [
    "EMBEDDING",
    "VERIFIER",
    "Distances",
    "Reference",
    "Side",
    "Step",
    "Steps",
    "Tensors",
    "reference_key",
]

EMBEDDING, VERIFIER = "audit_embedding", "audit_verifier"

# Synthetic images whose distances are kept as one step.
BLOCK = 500
# Training images that are planted under each change, at most.
PLANTED = 400
# Of these, how many are enough to tell how far a change takes a whole set of images.
FAR = 100
# CPU-milliseconds of one image at 128 px, so that the bar can tell the time left.
EMBED_MS, SQUEEZENET_MS, LPIPS_MS = 1.0, 12.0, 25.0
# Bytes that the vectors of LPIPS may take: less memory, and real images pass the network more often.
MEMORY = 2**30
# Images whose vectors that holds at 128 px.
KEPT = 500

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """One part of the work.

    Attributes:
        name: of its file.
        cost: about how many CPU-milliseconds it takes.
        compute: returns its result.
        path: where the result is kept; None for a step that keeps none.
    """

    name: str
    cost: float
    compute: Callable[[], Tensors]
    path: Path | None = None

    @full_fp32()
    def run(self) -> None:
        """Computes and keeps the result, unless an earlier run has."""
        if self.path is None:
            self.compute()
        elif not self.is_kept():
            save_tensors(self.path, self.compute())

    def is_kept(self) -> bool:
        """Whether the result is there already."""
        return self.path is not None and self.path.exists()


class Steps:
    """Steps of which each one's result lies in a folder.

    Args:
        folder: private, and named after all that the steps depend on.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def step(self, name: str, cost: float, compute: Callable[[], Tensors]) -> Step:
        """Makes a step that is kept here."""
        return Step(name, cost, compute, self.folder / f"{name}.pt")

    def read(self, name: str) -> Tensors:
        """Returns the result of a step that was run."""
        result: Tensors = load_tensors(self.folder / f"{name}.pt")
        return result


@dataclass(frozen=True)
class Side:
    """What is known of each image of a set, [N] each, towards the training images.

    Attributes:
        alike: correlation with the training image that it is most alike.
        first: distance to that, 1 - correlation.
        second: distance to the nearest training image of another patient.
        index: of the nearest.
        lpips: LPIPS to the training image that is nearest by LPIPS.
        verified: the verifier's highest logit.
        verified_index: of the training image that has it.
        others: how well the verifier tells other images of the nearest patient from those of all others
            (`bundle.auditing.measures.other_images_auc`); NaN where there are none.
        draws: of patients with replacement, as indices into the set.
    """

    alike: Tensor
    first: Tensor
    second: Tensor
    index: Tensor
    lpips: Tensor
    verified: Tensor
    verified_index: Tensor
    others: Tensor
    draws: list[NDArray[np.int64]]

    def agree(self, patients: Tensor) -> Tensor:
        """Marks the images, [N], of which embedding and verifier name the same of the training images' patients."""
        return patients[self.index] == patients[self.verified_index]

    def of(self, members: Tensor, patients: Tensor, seed: int) -> Side:
        """Returns the same of some members, with draws of their own.

        Args:
            members: their indices.
            patients: whose image each one of the whole set is.
            seed: of the draws.
        """
        tensors = {entry.name: getattr(self, entry.name)[members] for entry in fields(self) if entry.name != "draws"}
        return Side(**tensors, draws=patient_draws(patients[members], DRAWS, seed))


def reference_key(
    real: RealData, infos: Mapping[str, Mapping[str, Any]], squeezenet_file: str | os.PathLike[str] | None
) -> dict[str, Any]:
    """Returns plain values that change with whatever a `Reference` depends on besides its seed.

    Args:
        real: images.
        infos: content of the JSON of each network.
        squeezenet_file: weights of SqueezeNet 1.1.
    """
    return {
        **real.key(),
        "networks": {name: info["sha256"] for name, info in infos.items()},
        "trunk": sha256_file(squeezenet_file) if squeezenet_file else None,
    }


class Reference(Steps):
    """Real images, and what networks make of them: the same for every cohort that is held against them.

    Args:
        real: images of the roles ``train``, ``val`` and ``test``.
        networks: ``audit_embedding`` and ``audit_verifier``.
        folder: keeps the steps.
        seed: of the training images that are drawn for the trial and for whatever takes distances among them.
        squeezenet_file: weights of SqueezeNet 1.1; None lets torchvision find them.
        device: where to compute.

    Attributes:
        train_sample: indices of as many training images as there are test images.
        planted: indices of the training images that copies are made of.
    """

    def __init__(
        self,
        real: dict[str, RealImages],
        networks: Mapping[str, nn.Module],
        folder: str | os.PathLike[str],
        seed: int,
        squeezenet_file: str | os.PathLike[str] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(folder)
        self.real = real
        self.networks = networks
        self.squeezenet_file = squeezenet_file
        self.device = torch.device(device)
        random = torch.Generator().manual_seed(seed)
        n_test, n_train = len(real["test"].pixels), len(real["train"].pixels)
        self.train_sample = torch.randperm(n_train, generator=random)[:n_test]
        self.planted = torch.randperm(n_train, generator=random)[:PLANTED]
        self._lpips: Any = None

    def steps(self) -> Iterator[Step]:
        """Yields the steps in their order."""
        n_real = sum(len(side.pixels) for side in self.real.values())
        for name in self.networks:
            yield self.step(name, EMBED_MS * n_real, lambda name=name: self._points(name))  # type: ignore[misc]
            cost = (EMBED_MS + 1.0) * len(self.planted) * (1 + len(PLANTED_CHANGES))
            yield self.step(f"{name}_planted", cost, lambda name=name: self._planted(name))  # type: ignore[misc]
        yield self.step("features", SQUEEZENET_MS * n_real, self._features)
        yield self.step("lpips", LPIPS_MS * n_real * (1 + n_real / KEPT / 2), self._among)

    def altered_step(self) -> Step:
        """Returns the step that takes features of planted copies under each change, which only an audit asks for."""
        cost = (SQUEEZENET_MS + 1.0) * min(FAR, len(self.planted)) * len(PLANTED_CHANGES)
        return self.step("altered_features", cost, self._altered)

    @cached_property
    def points(self) -> dict[str, Tensors]:
        """What each network makes of every real image, and the training image that each one held out is most alike."""
        return {name: self.read(name) for name in self.networks}

    @cached_property
    def features(self) -> Tensors:
        """Features [N, D] of the images of each role."""
        return self.read("features")

    @cached_property
    def among(self) -> Tensor:
        """LPIPS between all real images: those of train, then of test, then of val."""
        return self.read("lpips")["distances"]

    def lpips(self, rows: str, columns: str) -> Tensor:
        """Returns LPIPS [N, M] between the images of two roles."""
        return self.among[self._places(rows)][:, self._places(columns)]

    def network(self, name: str) -> ContrastiveEmbedding | SiameseVerifier:
        """Returns one of the networks."""
        network = self.networks[name]
        assert isinstance(network, ContrastiveEmbedding | SiameseVerifier)
        return network

    def predict(self, name: str, pixels: Tensor) -> Tensor:
        """Returns what a network makes of uint8 pixels [N, H, W] or [N, H, W, 3]."""
        return torch.cat([predict(self.network(name), from_uint8(block)) for block in pixels.split(BLOCK)])

    def measure_features(self, pixels: Tensor) -> Tensor:
        """Returns the features [N, D] of uint8 pixels."""
        parts = pixels.split(BLOCK)
        return torch.cat([squeezenet_features(from_uint8(p), self.squeezenet_file, device=self.device) for p in parts])

    def measure_lpips(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Returns LPIPS [N, M] between uint8 pixels of two sets, or [N, N] within one."""
        if self._lpips is None:
            self._lpips = lpips_model(self.squeezenet_file)
        options: dict[str, Any] = {"model": self._lpips, "memory": MEMORY, "device": self.device}
        if y is None:
            return pairwise_within(from_uint8(x), **options)
        return pairwise(from_uint8(x), from_uint8(y), **options)

    def others(self, seen: Tensor, index: Tensor) -> Tensor:
        """Returns `bundle.auditing.measures.other_images_auc` [N] of images by the verifier.

        Args:
            seen: what the verifier makes of them.
            index: [N], of the nearest training image.
        """
        gallery, patients = self.points[VERIFIER]["train"], self.real["train"].patients
        blocks = zip(self.network(VERIFIER).alikeness(seen, gallery), index.split(ROWS), strict=True)
        return torch.cat([other_images_auc(alike, nearest, patients) for alike, nearest in blocks])

    def _places(self, role: str) -> slice:
        roles = ("train", "test", "val")
        sizes = [len(self.real[name].pixels) for name in roles]
        start = sum(sizes[: roles.index(role)])
        return slice(start, start + sizes[roles.index(role)])

    def _points(self, name: str) -> Tensors:
        network = self.network(name)
        points = {role: self.predict(name, side.pixels) for role, side in self.real.items()}
        found = {role: network.nearest(points[role], points["train"]) for role in ("val", "test")}
        points |= {f"{role}_alike": alike for role, (alike, _) in found.items()}
        points |= {f"{role}_index": index for role, (_, index) in found.items()}
        return points

    def _planted(self, name: str) -> Tensors:
        """How alike planted copies are to the training image that they are most alike, and which one that is."""
        network = self.network(name)
        gallery = self.read(name)["train"]
        images = from_uint8(self.real["train"].pixels[self.planted])
        copies = {"exact": images, **{change: function(images) for change, function in PLANTED_CHANGES.items()}}
        result: Tensors = {}
        for change, changed in copies.items():
            alike, index = network.nearest(predict(network, changed.clamp(-1.0, 1.0)), gallery)
            result |= {f"{change}_alike": alike, f"{change}_index": index}
        return result

    def _features(self) -> Tensors:
        return {role: self.measure_features(side.pixels) for role, side in self.real.items()}

    def _altered(self) -> Tensors:
        images = from_uint8(self.real["train"].pixels[self.planted[:FAR]])
        changed = {name: to_uint8(change(images)) for name, change in PLANTED_CHANGES.items()}
        return {name: self.measure_features(torch.from_numpy(pixels)) for name, pixels in changed.items()}

    def _among(self) -> Tensors:
        return {"distances": self.measure_lpips(torch.cat([self.real[r].pixels for r in ("train", "test", "val")]))}


class Distances(Steps):
    """Synthetic images held against real ones: all that the measures are made of.

    Args:
        cohort: uint8 pixels of the synthetic images.
        reference: the real images.
        folder: keeps the steps.
        seed: of the images that are drawn for whatever takes all distances among them.
        groups: [N], from 0, which images stand or fall together where others are drawn, as those of one path do; None
            for each one by itself.
        n_groups: how many numbers there are, see `bundle.auditing.resampling.patient_draws`.

    Attributes:
        sample: indices [n] of the synthetic images among which all distances are known, as many as test images.
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
        """Images of the roles ``train``, ``val`` and ``test``."""
        return self.reference.real

    def steps(self) -> Iterator[Step]:
        """Yields the steps in their order; those of the reference come before."""
        yield from self.block_steps()
        yield self.within_step()

    def block_steps(self) -> Iterator[Step]:
        """Yields the steps that hold the images, block by block, against the real ones."""
        n_real = sum(len(self.real[role].pixels) for role in ("train", "test"))
        for number, block in enumerate(self.cohort.split(BLOCK)):
            cost = (2 * EMBED_MS + SQUEEZENET_MS) * len(block) + LPIPS_MS * (len(block) + n_real)
            yield self.step(f"cohort_{number:04d}", cost, lambda block=block: self._block(block))  # type: ignore[misc]

    def within_step(self) -> Step:
        """Returns the step that takes the distances among the sample."""
        return self.step("within", LPIPS_MS * len(self.sample), self._within)

    @cached_property
    def rows(self) -> Tensors:
        """What is known of each synthetic image.

        ``point`` [N, D] of the embedding; ``alike`` and ``index`` of the training image that it is most alike;
        ``verified`` and ``verified_index``, the same by the verifier; ``others``, see `Side`; ``features`` [N, F];
        ``lpips`` to every image of train, then of test.
        """
        blocks = [self.read(f"cohort_{number:04d}") for number in range(len(self.cohort.split(BLOCK)))]
        return {key: torch.cat([block[key] for block in blocks]) for key in blocks[0]}

    @cached_property
    def within(self) -> Tensor:
        """LPIPS [n, n] among the images of the sample."""
        return self.read("within")["distances"]

    def of(self, members: Tensor, folder: str | os.PathLike[str], seed: int) -> Distances:
        """Returns some of the images as a cohort of its own, of which only the distances within are still to be taken.

        Args:
            members: their indices [n].
            folder: keeps the step.
            seed: see `Distances`.
        """
        part = Distances(self.cohort[members], self.reference, folder, seed, self.groups[members], self.n_groups)
        part.__dict__["rows"] = {key: value[members] for key, value in self.rows.items()}
        return part

    def lpips_to_train(self) -> Tensor:
        """Returns LPIPS [N] from each synthetic image to the nearest training image."""
        return self.rows["lpips"][:, : len(self.real["train"].pixels)].amin(dim=1)

    def lpips_of_sample(self) -> Tensor:
        """Returns all LPIPS among samples of the three sides: training images, test images, synthetic images."""
        n_train = len(self.real["train"].pixels)
        real = torch.cat([self.reference.train_sample, torch.arange(n_train, n_train + len(self.real["test"].pixels))])
        across = self.rows["lpips"][self.sample][:, real]
        upper = torch.cat([self.reference.among[real][:, real], across.T], dim=1)
        return torch.cat([upper, torch.cat([across, self.within], dim=1)])

    def sides(self, seed: int) -> dict[str, Side]:
        """Returns the cohort, the test images, and as many training images, drawn with replacement, as cohorts.

        Args:
            seed: of all draws.
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
                (verifier["test_alike"], verifier["test_index"]),
                self.reference.others(verifier["test"], points["test_index"]),
                self.reference.lpips("test", "train").amin(dim=1),
                test.patients,
            ),
            "training": (
                points["train"][drawn],
                self.reference.network(VERIFIER).nearest(verifier["train"][drawn], verifier["train"]),
                self.reference.others(verifier["train"][drawn], drawn),
                torch.zeros(len(drawn)),  # each is its own nearest training image
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
        alike, index = reference.network(EMBEDDING).nearest(point, reference.points[EMBEDDING]["train"])
        seen = reference.predict(VERIFIER, block)
        verified, verified_index = reference.network(VERIFIER).nearest(seen, reference.points[VERIFIER]["train"])
        real = torch.cat([self.real["train"].pixels, self.real["test"].pixels])
        return {
            "point": point,
            "alike": alike,
            "index": index,
            "verified": verified,
            "verified_index": verified_index,
            "others": reference.others(seen, index),
            "features": reference.measure_features(block),
            "lpips": reference.measure_lpips(block, real),
        }

    def _within(self) -> Tensors:
        return {"distances": self.reference.measure_lpips(self.cohort[self.sample])}
