# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The slow part of an audit: images pass networks, in steps that are kept on disk, so that a killed run goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bundle.audit.images import RealImages
from bundle.audit.measures import nearest_two
from bundle.audit.resampling import DRAWS, patient_draws
from bundle.figures import from_uint8
from bundle.files import atomic_write
from bundle.metrics.copies import PLANTED_CHANGES
from bundle.metrics.features import squeezenet_features
from bundle.metrics.lpips import lpips_model, pairwise
from bundle.metrics.recognition import predict
from bundle.networks.embeddings import ContrastiveEmbedding, SiameseVerifier

__all__ = ["EMBEDDING", "VERIFIER", "Distances", "Side", "Step"]

EMBEDDING, VERIFIER = "audit_embedding", "audit_verifier"

# Synthetic images whose distances are kept as one step.
BLOCK = 250
# Training images that are planted under each change, at most.
PLANTED = 400
# CPU-milliseconds of one image at 128 px, so that the bar can tell the time left.
EMBED_MS, SQUEEZENET_MS, LPIPS_MS = 1.0, 12.0, 25.0

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """One part of the work.

    Attributes:
        name: of its file.
        cost: about how many CPU-milliseconds it takes.
        compute: returns its result.
    """

    name: str
    cost: float
    compute: Callable[[], Tensors]


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
        draws: of patients with replacement, as indices into the set.
    """

    alike: Tensor
    first: Tensor
    second: Tensor
    index: Tensor
    lpips: Tensor
    verified: Tensor
    verified_index: Tensor
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


class Distances:
    """All that the measures are made of, step by step.

    Args:
        cohort: uint8 pixels of the synthetic images.
        real: images of the roles ``train``, ``val`` and ``test``.
        networks: ``audit_embedding`` and ``audit_verifier``.
        folder: keeps the steps; private, and named after all that they depend on.
        seed: of the images that are drawn for whatever takes all distances among them.
        trunk_file: weights of SqueezeNet 1.1; None lets torchvision find them.
        device: where to compute.

    Attributes:
        order: the cohort's images in the order in which they are taken, [N]; the first of them, as many as there are
            test images, are those among which all distances are known.
        sample: indices [n] of these.
        train_sample: indices of as many training images.
    """

    def __init__(
        self,
        cohort: Tensor,
        real: dict[str, RealImages],
        networks: dict[str, nn.Module],
        folder: str | os.PathLike[str],
        seed: int,
        trunk_file: str | os.PathLike[str] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.cohort = cohort
        self.real = real
        self.networks = networks
        self.folder = Path(folder)
        self.trunk_file = trunk_file
        self.device = torch.device(device)
        random = torch.Generator().manual_seed(seed)
        n_test, n_train = len(real["test"].pixels), len(real["train"].pixels)
        self.order = torch.randperm(len(cohort), generator=random)
        self.sample = self.order[:n_test]
        self.train_sample = torch.randperm(n_train, generator=random)[:n_test]
        self.planted = torch.randperm(n_train, generator=random)[:PLANTED]
        self._lpips: Any = None

    def steps(self) -> Iterator[Step]:
        """Yields the steps in their order."""
        n_real = sum(len(side.pixels) for side in self.real.values())
        n = len(self.cohort)
        for name in self.networks:
            yield Step(name, EMBED_MS * (n_real + n), lambda name=name: self._points(name))  # type: ignore[misc]
            cost = (EMBED_MS + 1.0) * len(self.planted) * (1 + len(PLANTED_CHANGES))
            yield Step(f"{name}_planted", cost, lambda name=name: self._planted(name))  # type: ignore[misc]
        yield Step("features", SQUEEZENET_MS * (n_real + n), self._features)
        n_test = len(self.sample)
        yield Step("lpips_sample", LPIPS_MS * 9 * n_test, self._lpips_sample)
        yield Step("lpips_real", LPIPS_MS * 2 * n_real, self._lpips_real)
        for number, block in enumerate(self.order.split(BLOCK)):
            cost = LPIPS_MS * (len(block) + n_real * -(-len(block) // BLOCK))
            yield Step(f"lpips_cohort_{number:04d}", cost, lambda block=block: self._lpips_block(block))  # type: ignore[misc]

    def run(self, step: Step) -> None:
        """Computes a step, unless an earlier run has."""
        if not self._path(step.name).exists():
            with atomic_write(self._path(step.name)) as temporary:
                torch.save(step.compute(), temporary)

    def read(self, name: str) -> Tensors:
        """Returns the result of a step that was run."""
        result: Tensors = torch.load(self._path(name), map_location="cpu", weights_only=True)
        return result

    def blocks(self) -> Iterator[tuple[Tensor, Tensors]]:
        """Yields indices into the cohort and their LPIPS, block by block."""
        for number, block in enumerate(self.order.split(BLOCK)):
            yield block, self.read(f"lpips_cohort_{number:04d}")

    def lpips_to_train(self) -> Tensor:
        """Returns LPIPS [N] from each synthetic image to the nearest training image."""
        lpips = torch.empty(len(self.cohort))
        for block, found in self.blocks():
            lpips[block] = found["to_train"]
        return lpips

    def sides(self, seed: int) -> dict[str, Side]:
        """Returns the cohort, the test images, and as many training images, drawn with replacement, as cohorts.

        Args:
            seed: of all draws.
        """
        train, test = self.real["train"], self.real["test"]
        points, verifier = self.read(EMBEDDING), self.read(VERIFIER)
        lpips = self.lpips_to_train()
        drawn = torch.from_numpy(np.random.default_rng(seed).integers(len(train.pixels), size=len(test.pixels)))
        sets = {
            "cohort": (points["cohort"], _found(verifier, "cohort"), lpips, torch.arange(len(lpips))),
            "test": (
                points["test"],
                _found(verifier, "test"),
                self.read("lpips_real")["test_to_train"],
                test.patients,
            ),
            "training": (
                points["train"][drawn],
                self._network(VERIFIER).nearest(verifier["train"][drawn], verifier["train"]),
                torch.zeros(len(drawn)),  # each is its own nearest training image
                train.patients[drawn],
            ),
        }
        sides = {}
        for number, (name, (at, verified, near, patients)) in enumerate(sets.items()):
            first, second, index = nearest_two(1.0 - at @ points["train"].T, train.patients)
            draws = patient_draws(patients, DRAWS, seed + number)
            sides[name] = Side(1.0 - first, first, second, index, near, *verified, draws)
        return sides

    def _network(self, name: str) -> ContrastiveEmbedding | SiameseVerifier:
        network = self.networks[name]
        assert isinstance(network, ContrastiveEmbedding | SiameseVerifier)
        return network

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.pt"

    def _predict(self, name: str, pixels: Tensor) -> Tensor:
        blocks = [predict(self._network(name), from_uint8(block)) for block in pixels.split(BLOCK)]
        return torch.cat(blocks)

    def _points(self, name: str) -> Tensors:
        """What a network makes of every image, and the training image that each is most alike."""
        network = self._network(name)
        points = {role: self._predict(name, side.pixels) for role, side in self.real.items()}
        points["cohort"] = self._predict(name, self.cohort)
        found = {role: network.nearest(points[role], points["train"]) for role in ("val", "test", "cohort")}
        points |= {f"{role}_alike": alike for role, (alike, _) in found.items()}
        points |= {f"{role}_index": index for role, (_, index) in found.items()}
        return points

    def _planted(self, name: str) -> Tensors:
        """How alike planted copies are to the training image that they are most alike, and which one that is."""
        network = self._network(name)
        gallery = self.read(name)["train"]
        images = from_uint8(self.real["train"].pixels[self.planted])
        copies = {"exact": images, **{change: function(images) for change, function in PLANTED_CHANGES.items()}}
        result: Tensors = {}
        for change, changed in copies.items():
            alike, index = network.nearest(predict(network, changed.clamp(-1.0, 1.0)), gallery)
            result |= {f"{change}_alike": alike, f"{change}_index": index}
        return result

    def _features(self) -> Tensors:
        sides = {role: side.pixels for role, side in self.real.items()} | {"cohort": self.cohort}
        return {
            role: torch.cat(
                [
                    squeezenet_features(from_uint8(block), self.trunk_file, device=self.device)
                    for block in pixels.split(BLOCK)
                ]
            )
            for role, pixels in sides.items()
        }

    def _pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        if self._lpips is None:
            self._lpips = lpips_model(self.trunk_file)
        return pairwise(from_uint8(x), from_uint8(y), self._lpips, device=self.device)

    def _lpips_sample(self) -> Tensors:
        """All distances among samples of the three sides: training, test and synthetic images."""
        train, test = (self.real[role].pixels for role in ("train", "test"))
        pixels = torch.cat([train[self.train_sample], test, self.cohort[self.sample]])
        return {"distances": self._pairwise(pixels, pixels)}

    def _lpips_real(self) -> Tensors:
        """From test images to the nearest training image, and from both to the nearest of val, the reference."""
        train, val, test = (self.real[role].pixels for role in ("train", "val", "test"))
        return {
            "test_to_train": self._pairwise(test, train).amin(dim=1),
            "train_to_val": self._pairwise(train, val).amin(dim=1),
            "test_to_val": self._pairwise(test, val).amin(dim=1),
        }

    def _lpips_block(self, block: Tensor) -> Tensors:
        """From some synthetic images to the nearest training image, and from all real images to the nearest of them."""
        n_train = len(self.real["train"].pixels)
        real = torch.cat([self.real["train"].pixels, self.real["test"].pixels])
        distances = self._pairwise(self.cohort[block], real)
        nearest = distances[:, :n_train].min(dim=1)
        columns = distances.amin(dim=0)
        return {
            "to_train": nearest.values,
            "index": nearest.indices,
            "from_train": columns[:n_train],
            "from_test": columns[n_train:],
        }


def _found(points: Tensors, role: str) -> tuple[Tensor, Tensor]:
    """How alike each image of a role is to the training image that it is most alike, and which one that is."""
    return points[f"{role}_alike"], points[f"{role}_index"]
