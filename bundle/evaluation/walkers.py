# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Ways to walk, each timed: what evaluation and benchmark compare."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bundle.gate.drawing import draw_and_judge
from bundle.gate.gate import Gate, GateDecision
from bundle.latent.pairs import pair_latents, pairs_per_block
from bundle.latent.prior import LatentPrior
from bundle.networks.model_set import ModelSet
from bundle.walk.guides import Guides, walk_guides
from bundle.walk.inferer import PlanWalkInferer
from bundle.walk.objective import Objective, PublishedObjective
from bundle.walk.path import WalkSettings

__all__ = ["Clock", "Judged", "Walk", "Walker", "published_walk", "straight_lines"]


@dataclass(frozen=True)
class Walk:
    """A way to walk.

    Attributes:
        title: in tables.
        objective: what each path minimises.
        settings: how it is minimised.
        guides: ``image`` or ``latent``.
        alone: walk one path at a time, not as many together as `generate` does.
    """

    title: str
    objective: Objective
    settings: WalkSettings
    guides: str
    alone: bool = False


def straight_lines(plan: Walk) -> Walk:
    """Returns the straight lines between the same end points: a walk of no step."""
    return dataclasses.replace(plan, title="straight line", settings=dataclasses.replace(plan.settings, steps=0))


def published_walk(objective: PublishedObjective, settings: WalkSettings) -> Walk:
    """Returns the authors' algorithm: path by path, on the guides themselves."""
    return Walk("published algorithm", objective, settings, "image", alone=True)


@dataclass
class Clock:
    """Seconds of wall and of CPU time, of all cores together."""

    wall: float = 0.0
    cpu: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Adds what passes within."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu


@dataclass
class Judged:
    """What a walker has walked, drawn and judged.

    Attributes:
        pairs: numbers of the paths, by class.
        w: their points [N, w_dim], by class.
        pixels: their images, uint8, by class.
        verdicts: the gate's word on them, by class.
        steps: steps that each path took.
        walking: time of the walks.
        judging: time of synthesis and gate.
    """

    pairs: list[list[int]]
    w: list[list[Tensor]]
    pixels: list[list[Tensor]]
    verdicts: list[list[GateDecision]]
    steps: list[int] = field(default_factory=list)
    walking: Clock = field(default_factory=Clock)
    judging: Clock = field(default_factory=Clock)


class Walker:
    """Walks, draws and judges in one way.

    Args:
        models: networks.
        prior: distance from the generator's mapping network.
        gate: judges.
        way: how to walk.
        n_points: points of a path.
        seed: of the end points.
    """

    def __init__(self, models: ModelSet, prior: LatentPrior, gate: Gate, way: Walk, n_points: int, seed: int) -> None:
        self.models = models
        self.gate = gate
        self.way = way
        self.seed = seed
        self.guides: Guides = walk_guides(models, way.guides, way.objective.clamped_gradient)
        self.inferer = PlanWalkInferer(self.guides, prior, way.objective, way.settings, n_points)
        self.block = 1 if way.alone else pairs_per_block(way.guides, n_points)
        self.reset()

    def reset(self) -> None:
        """Forgets what has been walked."""
        classes = range(self.models.generator.num_classes)
        self.judged = Judged([[] for _ in classes], [[] for _ in classes], [[] for _ in classes], [[] for _ in classes])

    def walk(self, pairs: range, label: int) -> None:
        """Walks between the pairs of these numbers, block by block, and judges every point."""
        generator = self.models.generator
        for first in range(pairs.start, pairs.stop, self.block):
            block = range(first, min(first + self.block, pairs.stop))
            z = pair_latents(block, label, generator.z_dim, generator.num_classes, self.seed)
            with self.judged.walking.running():
                path = self.inferer(z, generator, torch.full((len(block),), label))
            self.judged.steps += [path["loss_history"].shape[1]] * len(block)
            for pair, w in zip(block, path["w"], strict=True):
                with self.judged.judging.running():
                    pixels, verdict = draw_and_judge(generator, self.gate, w, label)
                self.judged.pairs[label].append(pair)
                self.judged.w[label].append(w)
                self.judged.pixels[label].append(pixels)
                self.judged.verdicts[label].append(verdict)
