# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Makes pools of synthetic images with different methods, from the same networks and end points."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bundle.cohort.ledger import LEAST_SHARE
from bundle.cohort.settings import default_guides, generation_networks
from bundle.data import DataError, ImageData
from bundle.evaluation.arms import POOLS
from bundle.evaluation.walkers import Clock, Walk, Walker, published_walk, straight_lines
from bundle.gate.drawing import draw_and_judge
from bundle.gate.gate import GateDecision, gate_apart, open_gate
from bundle.latent.pairs import pair_latents
from bundle.latent.prior import LatentPrior
from bundle.networks.model_set import ModelSet, load_models
from bundle.options import OptionError
from bundle.steps import Tensors
from bundle.walk.objective import BalancedObjective, PublishedObjective
from bundle.walk.path import WalkSettings

__all__ = ["PoolMaker", "evaluation_models", "image_quotas"]

# Number of pairs of a class that form a part, whose images are made and kept together.
PART_PAIRS = 16
# A class stops growing once it has more than TRIED times the images of an arm, and less than LEAST_SHARE are released.
TRIED = 4


def evaluation_models(models_dir: str, device: str) -> ModelSet:
    """Loads the networks that `generate` needs for its default walk, from one folder."""
    return load_models(models_dir, device, generation_networks(default_guides(models_dir)))


def image_quotas(data: ImageData, n_images: int | None) -> dict[int, int]:
    """Returns the number of images of each class in an arm, by label, in the proportions of the training images.

    Args:
        data: real images.
        n_images: number of images in an arm; None for that of the training images.

    Raises:
        DataError: a class has no training image, or would have no image in an arm.
    """
    labels = [record.label for record in data.records("train")]
    counts = {label: labels.count(label) for label in range(len(data.class_names))}
    for label, count in counts.items():
        if not count:
            raise DataError(
                f"no training image shows {data.class_names[label]}; give dataset_dir some, or other classes."
            )
    if n_images is None:
        return counts
    quotas = {label: round(n_images * count / len(labels)) for label, count in counts.items()}
    absent = [data.class_names[label] for label, quota in quotas.items() if not quota]
    if absent:
        raise DataError(f"of {n_images} images, none would show {absent[0]}. Give a higher n_images.")
    return quotas


class PoolMaker:
    """Makes the images of pools, part by part.

    Args:
        models: networks from `evaluation_models`.
        n_points: number of points of a path in `generate`, ends included.
        long_points: number of points of a long path.
        long_pairs: number of long paths of each class for linear paths and for PLAN.
        published_pairs: number of these that the published algorithm walks as well; 0 to leave it out.
        objective: objective of PLAN's walk.
        walk_settings: step count, learning rate and stopping rule of PLAN's optimiser.
        published_objective: objective of the published algorithm.
        published_settings: step count, learning rate and stopping rule of the published algorithm's optimiser.

    Attributes:
        apart: see `bundle.gate.gate.gate_apart`.
        settings: plain values that identify everything the images depend on, except seed and pool.
    """

    def __init__(
        self,
        models: ModelSet,
        n_points: int,
        long_points: int,
        long_pairs: int,
        published_pairs: int,
        objective: BalancedObjective,
        walk_settings: WalkSettings,
        published_objective: PublishedObjective,
        published_settings: WalkSettings,
    ) -> None:
        self.models = models
        self.n_points, self.long_points = n_points, long_points
        self.long_pairs, self.published_pairs = long_pairs, published_pairs
        self.prior = LatentPrior(models.generator)
        self.gate, self.apart = open_gate(models), gate_apart(models)
        self.guides = "latent" if "latent_identity" in models.networks else "image"
        if isinstance(objective, PublishedObjective):
            raise OptionError(
                ["objective: evaluate compares PLAN with the published algorithm. Leave configs/published.json out."]
            )
        plan = Walk("PLAN", objective, walk_settings, self.guides)
        published = published_walk(published_objective, published_settings)
        self.walks = {"linear": straight_lines(plan), "plan": plan, "published": published}
        self.settings: dict[str, Any] = {
            "models": models.sha256(),
            "guides": self.guides,
            "walk": {
                "balanced": dataclasses.asdict(walk_settings),
                "published": dataclasses.asdict(published_settings),
            },
            "objectives": {
                "balanced": dataclasses.asdict(objective),
                "published": dataclasses.asdict(published_objective),
            },
            "n_points": n_points,
            "long_points": long_points,
            "least_share": [LEAST_SHARE, TRIED],
        }

    def size(self, pool: str, quotas: dict[int, int]) -> int:
        """Returns the approximate number of images of a pool before it grows."""
        return sum(self._pairs(pool, quota) * self._points(pool) for quota in quotas.values())

    def cost(self, pool: str) -> float:
        """Returns the approximate CPU-milliseconds per image of a pool."""
        # Below 64 px the time depends on the number of calls, not of pixels.
        pixels = (max(64, int(self.models.infos["generator"]["resolution"])) / 128) ** 2
        plan = 2.5 if self.guides == "latent" else 400.0 * pixels
        walking = {"published": 8000.0 * pixels, "plan": plan}
        walked = self._path_points(pool) if POOLS[pool].one_point else 1
        return walked * walking.get(POOLS[pool].walk, 0.0) + 8.0 * pixels

    def parts(self, pool: str, quotas: dict[int, int]) -> Iterator[tuple[int, range]]:
        """Yields label and pair numbers of the parts of a pool before it grows."""
        kind = POOLS[pool]
        size = 1 if kind.walk == "published" else PART_PAIRS
        for label, quota in quotas.items():
            pairs = self._pairs(pool, quota)
            for first in range(0, pairs, size):
                yield label, range(first, first + size if kind.grows else min(first + size, pairs))

    def further(self, pool: str, part: tuple[int, range], quota: int, kept: int) -> tuple[int, range] | None:
        """Returns the part after the last one of a class without enough images; None if too few are kept."""
        label, pairs = part
        made = pairs.stop * self._points(pool)
        if not POOLS[pool].grows or (made > TRIED * quota and kept < LEAST_SHARE * made):
            return None
        return label, range(pairs.stop, pairs.stop + PART_PAIRS)

    def _points(self, pool: str) -> int:
        """Returns the number of images of a pair of end points."""
        kind = POOLS[pool]
        return 2 if kind.single else 1 if kind.one_point else self._path_points(pool)

    def _path_points(self, pool: str) -> int:
        """Returns the number of points of a path, ends included; at least 3 if an inner point of it is kept."""
        kind = POOLS[pool]
        return self.long_points if kind.long else max(3, self.n_points) if kind.one_point else self.n_points

    def _pairs(self, pool: str, quota: int) -> int:
        """Returns the number of pairs of a class before the pool grows."""
        kind = POOLS[pool]
        if kind.long:
            return self.published_pairs if kind.walk == "published" else self.long_pairs
        return -(-quota // self._points(pool))

    def make(self, pool: str, seed: int, label: int, pairs: range) -> Tensors:
        """Makes one part of a pool: what a `Pool` has without ``kept``, and the gate's ``features``."""
        kind = POOLS[pool]
        generator = self.models.generator
        if kind.single:  # the end points themselves, as independent samples
            z = pair_latents(pairs, label, generator.z_dim, generator.num_classes, seed).flatten(0, 1)
            device, clock = next(generator.parameters()).device, Clock()
            with torch.no_grad(), clock.running():
                w = generator.mapping(z.to(device), torch.full((len(z),), label, device=device))
                pixels, verdict = draw_and_judge(generator, self.gate, w, label)
            verdicts, cpu = [verdict], clock.cpu
        else:
            way, n_points = self.walks[kind.walk], self._path_points(pool)
            walker = Walker(self.models, self.prior, self.gate, way, n_points, seed)
            (walker.walk_to_inner_points if kind.one_point else walker.walk)(pairs, label)
            judged = walker.judged
            pixels, verdicts = torch.cat(judged.pixels[label]), judged.verdicts[label]
            cpu = judged.walking.cpu + judged.judging.cpu

        def joined(name: str) -> Tensor:
            return torch.cat([getattr(verdict, name) for verdict in verdicts]).cpu()

        return {
            "pixels": pixels,
            "labels": torch.full((len(pixels),), label),
            "pairs": torch.tensor(pairs).repeat_interleave(self._points(pool)),
            **{field.name: joined(field.name) for field in dataclasses.fields(GateDecision)},
            "cpu_seconds": torch.full((len(pixels),), cpu / len(pixels), dtype=torch.float64),
        }
