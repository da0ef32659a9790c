# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The attacks on the generator as further steps of an audit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bundle.auditing.deep.attack import Attack
from bundle.auditing.deep.canaries import inserted, make_canaries
from bundle.auditing.deep.findings import canary_attack, membership_attack, ratios
from bundle.auditing.deep.inversion import QUESTION, TITLE, choose, inversion_attack, invert
from bundle.auditing.deep.opinion import CohortAttacks
from bundle.auditing.deep.scores import SPACES, Scorer
from bundle.auditing.deep.settings import DeepSettings
from bundle.auditing.deep.shadows import MEMORISE, Pool, ShadowImages, draw_halves, train_shadow
from bundle.auditing.distances import Distances
from bundle.auditing.images import RealData, RealImages, read_pixels
from bundle.auditing.reference import EMBEDDING
from bundle.auditing.resampling import LEAST
from bundle.figures import from_uint8
from bundle.files import atomic_write
from bundle.markup import csv_text
from bundle.networks.stylegan2 import Generator
from bundle.networks.weights import load_weights
from bundle.steps import Step, Steps, Tensors
from bundle.training.seeds import stream_seed

__all__ = ["DeepAudit"]

# CPU-milliseconds of a step of training, and of a step of inversion, per image of 64 x 64 pixels.
TRAIN_MS, INVERT_MS, SCORE_MS = 100.0, 60.0, 15.0
# Images of the generator that should memorise, in multiples of the fewest that are reported.
MEMORISED = 2 * LEAST
# Random streams; the training of shadow n has stream (SHADOW, n).
SHADOW, MEMORISER, CANARY, LATENTS, RELABELLED = range(5)


class DeepAudit(Steps):
    """Attacks on the audited generator and on the recipe it was trained by.

    Args:
        settings: options.
        real: real images of all roles.
        distances: distances between the cohort and the real images, whose steps are run before.
        labels: labels of the cohort; None if they are unknown.
        folder: private folder that keeps the results of the steps.
        seed: seed of all random choices.
        device: device of the computation.
    """

    def __init__(
        self,
        settings: DeepSettings,
        real: RealData,
        distances: Distances,
        labels: Tensor | None,
        folder: str | os.PathLike[str],
        seed: int,
        device: str | torch.device,
    ) -> None:
        super().__init__(folder)
        self.settings, self.real, self.distances = settings, real, distances
        self.seed, self.device = seed, device
        self.cohort_attacks = CohortAttacks(distances, real.own, labels, folder, seed)

    @cached_property
    def pools(self) -> dict[str, Pool]:
        """Images at the resolution of the shadows, by role; train without extra images."""
        train = self.real.sides["train"].part(self.real.own)
        sides = {"train": train, "val": self.real.sides["val"], "test": self.real.sides["test"]}
        return {role: self._pool(side, role) for role, side in sides.items()}

    def _pool(self, side: RealImages, role: str) -> Pool:
        paths, resolution = [record.image for record in side.records], self.settings.shadow_resolution
        pixels = side.pixels
        if resolution != pixels.shape[1]:
            pixels = read_pixels(paths, self.real.data.modality, resolution, f"{role} for the attacks")
        return Pool(pixels, side.labels, side.patients)

    @cached_property
    def pool(self) -> Pool:
        """The images that shadows are drawn from, those of train first, and then those of test."""
        return self.pools["train"].joined(self.pools["test"])

    @cached_property
    def canaries(self) -> Pool:
        """Canaries and candidates, see `make_canaries`."""
        return make_canaries(self.pools["val"], self.settings.n_canaries, self.seed)

    @cached_property
    def members(self) -> Tensor:
        """Whether each shadow is trained on each image of the pool, bool [n_shadows, P]."""
        return draw_halves(self.pool, self.settings.n_shadows, self.seed)

    @cached_property
    def memorised(self) -> Tensor:
        """Indices of the pool's images that the generator of the positive control is trained on."""
        random = torch.Generator().manual_seed(self.seed)
        return torch.randperm(len(self.pool.pixels), generator=random)[:MEMORISED].sort().values

    @cached_property
    def chosen(self) -> dict[str, Tensor]:
        """Indices of the images that are reconstructed, by role."""
        labels = {role: pool.labels for role, pool in self.pools.items()}
        return choose(labels, self.settings.inversion_images, self.seed)

    @cached_property
    def generator(self) -> Generator | str:
        """The audited generator, or the reason why it is not attacked."""
        path = Path(self.settings.models_dir) / "generator.pt"
        if not path.exists():
            return "models_dir has no generator.pt"
        network, info = load_weights(path, self.device)
        if not isinstance(network, Generator):
            return "generator.pt in models_dir is no generator"
        if info.get("split_sha256") != self.real.data.split_sha256:
            return "the generator in models_dir was trained with another split of the data"
        return network

    def steps(self) -> Iterator[Step]:
        """Yields the steps in order."""
        yield from self.cohort_attacks.steps()
        settings, side = self.settings, (self.settings.shadow_resolution / 64) ** 2
        n_scored = len(self.real.own) + len(self.real.sides["test"].pixels) + settings.shadow_samples
        cost = (TRAIN_MS * 1000 * settings.shadow_kimg + SCORE_MS * n_scored) * side
        yield self.step("points", SCORE_MS * n_scored, lambda: self.scorer.describe())
        if not isinstance(self.generator, str):
            generator = self.generator
            yield self.step("audited", SCORE_MS * n_scored * side, lambda: self._score(generator))
            per_image = INVERT_MS * settings.inversion_steps * settings.inversion_starts * side
            for role in ("train", "test", "val"):
                n = settings.inversion_images
                yield self.step(f"inverted_{role}", per_image * n, lambda role=role: self._invert(role))  # type: ignore[misc]
        for number in range(settings.n_shadows):
            yield self.step(f"shadow_{number:03d}", cost, lambda number=number: self._shadow(number))  # type: ignore[misc]
        yield self.step("canaries", cost, self._with_canaries)
        if settings.deep_controls:
            yield self.step("memorised", cost, self._memoriser)

    @cached_property
    def scorer(self) -> Scorer:
        """Scores the pool's images, and then canaries and candidates."""
        pixels = torch.cat([self.pool.pixels, self.canaries.pixels])
        embedding = self.distances.reference.network(EMBEDDING)
        n, file = self.settings.shadow_samples, self.settings.squeezenet_file
        return Scorer(pixels, embedding, n, self._seed(LATENTS), file, self.device)

    def _score(self, generator: Generator) -> Tensors:
        return self.scorer.score(generator, self.read("points"))

    def _train(self, images: Pool, seed: int, **changes: Any) -> Tensors:
        data = self.real.data
        subset = ShadowImages(images, self.pools["val"], data.modality, data.class_names)
        return self._score(train_shadow(subset, self.settings, seed, self.device, changes))

    def _shadow(self, number: int) -> Tensors:
        return self._train(self.pool.part(self.members[number].nonzero()[:, 0]), self._seed(SHADOW, number))

    def _with_canaries(self) -> Tensors:
        # All patients, so that the canaries are as small a share of the images as can be.
        return self._train(self.pool.joined(inserted(self.canaries, self.settings.n_canaries)), self._seed(CANARY))

    def _memoriser(self) -> Tensors:
        return self._train(self.pool.part(self.memorised), self._seed(MEMORISER), **MEMORISE)

    def _invert(self, role: str) -> Tensors:
        assert isinstance(self.generator, Generator)
        mine, settings = self.pools[role].part(self.chosen[role]), self.settings
        steps, starts = settings.inversion_steps, settings.inversion_starts
        images = from_uint8(mine.pixels)
        return invert(self.generator, images, mine.labels, steps, starts, self.seed, settings.squeezenet_file)

    def _seed(self, *stream: int) -> int:
        return stream_seed(self.seed, *stream)

    def _scores(self, name: str, of_pool: bool = True) -> Tensors:
        """Returns the scores of the pool's images, or of canaries and candidates, by a generator."""
        n = len(self.pool.pixels)
        return {space: values[:n] if of_pool else values[n:] for space, values in self.read(name).items()}

    def _shadow_scores(self, of_pool: bool = True) -> Tensors:
        rows = [self._scores(f"shadow_{number:03d}", of_pool) for number in range(self.settings.n_shadows)]
        return {space: torch.stack([row[space] for row in rows]) for space in SPACES}

    @cached_property
    def _trained_on(self) -> Tensor:
        """Whether the audited generator was trained on each image of the pool."""
        return torch.arange(len(self.pool.pixels)) < len(self.pools["train"].pixels)

    @cached_property
    def _audited(self) -> dict[str, Tensor] | str:
        """Log likelihood ratios of the audited generator by space, or the reason why it is not attacked."""
        if isinstance(self.generator, str):
            return self.generator
        return ratios(self._shadow_scores(), self.members, self._scores("audited"))

    def attacks(self) -> list[Attack]:
        """Returns the results of all attacks, after all steps have been run."""
        shadows, memorised = self._shadow_scores(), None
        if self.settings.deep_controls:
            inside = torch.zeros(len(self.pool.pixels), dtype=torch.bool)
            inside[self.memorised] = True
            memorised = ratios(shadows, self.members, self._scores("memorised")), inside
        relabelled = draw_halves(self.pool, len(self.members), self._seed(RELABELLED))
        audited = self._audited if isinstance(self._audited, str) else (self._audited, self._trained_on)
        patients = self.pool.patients
        return [
            membership_attack(shadows, self.members, relabelled, patients, audited, memorised, self.seed),
            self._inversion(),
            canary_attack(
                self._scores("canaries", False),
                self._shadow_scores(False),
                self.canaries.patients,
                self.settings.n_canaries,
                self.seed,
            ),
            *self.cohort_attacks.attacks(),
        ]

    def _inversion(self) -> Attack:
        if isinstance(self.generator, str):
            return Attack("inversion", TITLE, QUESTION, reason=self.generator)
        errors = {role: self.read(f"inverted_{role}") for role in self.chosen}
        patients = {role: self.pools[role].patients[index] for role, index in self.chosen.items()}
        return inversion_attack(errors, self._nearest_others(), patients, self.seed)

    def _nearest_others(self) -> dict[str, Tensor]:
        """Returns the LPIPS of each reconstructed image to the nearest real image of another patient."""
        reference, nearest = self.distances.reference, {}
        for role, index in self.chosen.items():
            found = []
            for other, side in self.real.sides.items():
                rows = self.real.own[index] if role == "train" else index
                distances = reference.lpips(role, other)[rows]
                if other == role:
                    same = side.patients[rows][:, None] == side.patients[None]
                    distances = distances.masked_fill(same, torch.inf)
                found.append(distances.amin(dim=1))
            nearest[role] = torch.stack(found).amin(dim=0)
        return nearest

    def content(self) -> dict[str, Any]:
        """Returns the results for results.json: aggregates only."""
        return {
            "settings": self.settings.plain(),
            "pool": {"images": len(self.pool.pixels), "patients": len(self.pool.patients.unique())},
            "attacks": [attack.content() for attack in self.attacks()],
        }

    def write_private(self, folder: Path) -> None:
        """Writes what the attacks say of single images to ``deep.csv`` in a private folder."""
        records = [self.real.sides["train"].records[n] for n in self.real.own.tolist()]
        records += self.real.sides["test"].records
        spaces = [] if isinstance(self._audited, str) else list(SPACES)
        errors: dict[int, str] = {}
        if not isinstance(self.generator, str):
            n_train = len(self.pools["train"].pixels)
            for role, start in (("train", 0), ("test", n_train)):
                values = self.read(f"inverted_{role}")["lpips"]
                errors |= {start + int(n): f"{v:.4f}" for n, v in zip(self.chosen[role], values, strict=True)}
        named = [f"log_ratio_{space}" for space in spaces]
        rows: list[list[object]] = [["image", "patient_id", "split", *named, "reconstruction_lpips"]]
        for number, record in enumerate(records):
            split = "train" if self._trained_on[number] else "test"
            found = [] if isinstance(self._audited, str) else [f"{self._audited[s][number]:.3f}" for s in spaces]
            rows.append([record.name, record.patient_id, split, *found, errors.get(number, "")])
        with atomic_write(folder / "deep.csv") as temporary:
            temporary.write_bytes(csv_text(rows).encode())
