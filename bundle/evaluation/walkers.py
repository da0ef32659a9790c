# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Kinds of walk that evaluation and benchmark compare, with the time they take."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bundle.gate.drawing import draw_and_judge, draw_and_judge_path
from bundle.gate.gate import Gate, GateDecision
from bundle.latent.pairs import pair_latents, pairs_per_block
from bundle.latent.prior import LatentPrior
from bundle.networks.model_set import ModelSet
from bundle.networks.stylegan2 import Generator
from bundle.training.seeds import stream_seed
from bundle.walk.guides import Guides, walk_guides
from bundle.walk.inferer import PlanWalkInferer
from bundle.walk.objective import Objective, PublishedObjective
from bundle.walk.path import WalkSettings

__all__ = ["Clock", "Judged", "Walk", "Walker", "inner_point", "published_walk", "straight_lines"]

# Number of the random stream of `inner_point`.
INNER = 4


@dataclass(frozen=True)
class Walk:
    """A kind of walk.

    Attributes:
        title: title in tables.
        objective: objective that each path minimises.
        settings: step count, learning rate and stopping rule of the optimiser.
        guides: ``image`` or ``latent``, the kind of guides.
        alone: whether to optimise one path at a time, instead of a block of paths as in `generate`.
    """

    title: str
    objective: Objective
    settings: WalkSettings
    guides: str
    alone: bool = False


def straight_lines(plan: Walk) -> Walk:
    """Returns the walk without optimisation steps, whose paths are straight lines between the same end points."""
    return dataclasses.replace(plan, title="straight line", settings=dataclasses.replace(plan.settings, steps=0))


def published_walk(objective: PublishedObjective, settings: WalkSettings) -> Walk:
    """Returns the algorithm of the paper's authors, which optimises one path at a time with the image guides."""
    return Walk("published algorithm", objective, settings, "image", alone=True)


def inner_point(seed: int, label: int, pair: int, n_points: int) -> int:
    """Draws the inner point that is kept of a path, uniformly and from the path's own numbers alone.

    Args:
        seed: seed of the end points.
        label: class of the pair.
        pair: number of the pair of end points within its class.
        n_points: number of points of the path, ends included; at least 3.

    Returns:
        Index of the point, from 1 to ``n_points`` - 2.
    """
    return 1 + stream_seed(seed, INNER, label, pair) % (n_points - 2)


@dataclass
class Clock:
    """Accumulated wall time and CPU time (of all cores), in seconds."""

    wall: float = 0.0
    cpu: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Returns a context that adds the time spent in it."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu


@dataclass
class Judged:
    """The results of a walker; lists are by class and path, or block of paths if one point of each is kept.

    Attributes:
        pairs: numbers of the pairs of end points.
        w: latent points [N, w_dim].
        pixels: images, uint8.
        verdicts: decisions of the gate.
        steps: number of steps of each path, in the order of the walks.
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
    """Runs one kind of walk, synthesises the images of the paths and evaluates the gate.

    Args:
        models: generator and guides.
        prior: prior of the generator's latent codes.
        gate: gate that decides which images may be released.
        way: kind of walk.
        n_points: number of points of a path, ends included.
        seed: seed of the end points.
    """

    def __init__(self, models: ModelSet, prior: LatentPrior, gate: Gate, way: Walk, n_points: int, seed: int) -> None:
        self.models = models
        self.gate = gate
        self.way = way
        self.seed = seed
        self.guides: Guides = walk_guides(models, way.guides, way.objective)
        self.n_points = n_points
        self.inferer = PlanWalkInferer(self.guides, prior, way.objective, way.settings, n_points)
        self.block = 1 if way.alone else pairs_per_block(way.guides, n_points)
        self.reset()

    def reset(self) -> None:
        """Discards all results."""
        classes = range(self.models.generator.num_classes)
        self.judged = Judged([[] for _ in classes], [[] for _ in classes], [[] for _ in classes], [[] for _ in classes])

    def walk(self, pairs: range, label: int) -> None:
        """Walks between the pairs with the given numbers, block by block, and evaluates the gate; ends never pass."""
        for block, paths in self._paths(pairs, label):
            for pair, w in zip(block, paths, strict=True):
                self._judge([pair], w, label, draw_and_judge_path)

    def walk_to_inner_points(self, pairs: range, label: int) -> None:
        """Walks as `walk`, but synthesises and judges a single point of each path, that of `inner_point`."""
        for block, paths in self._paths(pairs, label):
            kept = [inner_point(self.seed, label, pair, self.n_points) for pair in block]
            self._judge(block, paths[torch.arange(len(block)), torch.tensor(kept)], label, draw_and_judge)

    def _paths(self, pairs: range, label: int) -> Iterator[tuple[range, Tensor]]:
        """Yields numbers and latent points [P, N, w_dim] of the paths of each block."""
        generator = self.models.generator
        for first in range(pairs.start, pairs.stop, self.block):
            block = range(first, min(first + self.block, pairs.stop))
            z = pair_latents(block, label, generator.z_dim, generator.num_classes, self.seed)
            with self.judged.walking.running():
                path = self.inferer(z, generator, torch.full((len(block),), label))
            self.judged.steps += [path["loss_history"].shape[1]] * len(block)
            yield block, path["w"]

    def _judge(
        self,
        pairs: Sequence[int],
        w: Tensor,
        label: int,
        judge: Callable[[Generator, Gate, Tensor, int], tuple[Tensor, GateDecision]],
    ) -> None:
        with self.judged.judging.running():
            pixels, verdict = judge(self.models.generator, self.gate, w, label)
        self.judged.pairs[label] += pairs
        self.judged.w[label].append(w)
        self.judged.pixels[label].append(pixels)
        self.judged.verdicts[label].append(verdict)
