# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The arms of the comparison and the pools of images from which they are selected.

A pool holds all images that one method has made from the end points of a seed. An arm without the gate takes the first
images of a pool, in the order of the pairs of end points, and an arm with the gate the first that pass. All arms
therefore use the same pairs as far as possible.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bundle.cohort.even import even_shares, spread_places

__all__ = ["ARMS", "LONG_ARMS", "POOLS", "Arm", "Pool", "PoolKind", "select"]


@dataclass(frozen=True)
class PoolKind:
    """A method of making images.

    Attributes:
        walk: ``random`` for independent samples, otherwise the kind of path: ``linear``, ``plan`` or ``published``.
        long: whether paths have as many points as in the paper's figure, instead of as many as in `generate`.
        one_point: whether a single inner point of each path is kept, see `bundle.evaluation.walkers.inner_point`.
    """

    walk: str
    long: bool = False
    one_point: bool = False

    @property
    def single(self) -> bool:
        """Whether images are independent samples, not points of a path."""
        return self.walk == "random"

    @property
    def numbering(self) -> tuple[bool, bool, bool]:
        """What two pools must have in common for their pairs to be drawn together in the bootstrap."""
        return self.long, self.single, self.one_point

    @property
    def grows(self) -> bool:
        """Whether pairs are added until enough images pass the gate."""
        return not self.long


POOLS = {
    "random": PoolKind("random"),
    "lines": PoolKind("linear"),
    "walks": PoolKind("plan"),
    "line_points": PoolKind("linear", one_point=True),
    "walk_points": PoolKind("plan", one_point=True),
    "long_lines": PoolKind("linear", long=True),
    "long_walks": PoolKind("plan", long=True),
    "long_published": PoolKind("published", long=True),
}


@dataclass(frozen=True)
class Arm:
    """One image set of the comparison.

    Attributes:
        title: title in the tables.
        pool: name of the pool from which images are selected; empty for the real training images.
        gated: whether images must pass the gate.
        common: whether only those pairs are used that the published algorithm walks as well.
    """

    title: str
    pool: str = ""
    gated: bool = False
    common: bool = False


#: Arms of equal size by name.
ARMS = {
    "real": Arm("Real"),
    "random": Arm("Random sampling", "random"),
    "random_gate": Arm("Random sampling + gate", "random", gated=True),
    "linear": Arm("Linear", "lines"),
    "linear_gate": Arm("Linear + gate", "lines", gated=True),
    "linear_one_gate": Arm("Linear, one point a path + gate", "line_points", gated=True),
    "plan": Arm("PLAN", "walks"),
    "plan_gate": Arm("PLAN + gate", "walks", gated=True),
    "plan_one_gate": Arm("PLAN, one point a path + gate", "walk_points", gated=True),
}
#: Arms of long paths, with every point of each path.
LONG_ARMS = {
    "long_linear": Arm("Linear, long paths", "long_lines"),
    "long_plan": Arm("PLAN, long paths", "long_walks"),
    "common_linear": Arm("Linear, long paths, common pairs", "long_lines", common=True),
    "common_plan": Arm("PLAN, long paths, common pairs", "long_walks", common=True),
    "common_published": Arm("Published algorithm, common pairs", "long_published", common=True),
}


@dataclass(frozen=True)
class Pool:
    """Images of one method, sorted by class, pair and point.

    Attributes:
        pixels: uint8 [M, H, W] or [M, H, W, 3].
        labels: label [M] of each image.
        pairs: number [M] of the pair of end points within its class.
        passed: whether the image passes the gate, bool [M].
        recognised: whether the gate recognises a training patient, bool [M].
        mislabelled: whether the gate predicts another class than the label, bool [M].
        unrealistic: whether the gate finds the image too far from real ones, bool [M].
        kept: whether the image passes and is no near-duplicate of an earlier one that is kept, bool [M]; `generate`
            releases only such images.
        cpu_seconds: time [M] of walk, synthesis and gate for the image, on all cores of the machine that made it.
    """

    pixels: Tensor
    labels: Tensor
    pairs: Tensor
    passed: Tensor
    recognised: Tensor
    mislabelled: Tensor
    unrealistic: Tensor
    kept: Tensor
    cpu_seconds: Tensor


def select(pool: Pool, arm: Arm, quotas: Mapping[int, int] | None, n_pairs: int | None = None) -> Tensor:
    """Selects the images of an arm from its pool.

    Args:
        pool: pool of the arm.
        arm: arm, gated or not.
        quotas: number of images of each class; None for all images.
        n_pairs: number of pairs of each class from which images are selected; None for all pairs.

    Returns:
        Indices into the pool, sorted by class; fewer than the quotas if the pool is too small.
    """
    parts = []
    for label in pool.labels.unique().tolist():
        chosen = pool.labels == label
        if arm.gated:
            chosen &= pool.kept
        if n_pairs is not None:
            chosen &= pool.pairs < n_pairs
        places = chosen.nonzero()[:, 0]
        quota = len(places) if quotas is None else quotas.get(label, 0)
        parts.append(_evenly(places, pool.pairs[places], quota) if arm.gated else places[:quota])
    return torch.cat(parts)


def _evenly(places: Tensor, pairs: Tensor, quota: int) -> Tensor:
    """Selects kept images of a class as `generate` does, evenly from all paths."""
    passed = pairs.unique_consecutive(return_counts=True)[1].tolist()
    paths, shares = places.split(passed), even_shares(passed, quota)
    return torch.cat(
        [places[:0], *(path[spread_places(len(path), wanted)] for path, wanted in zip(paths, shares, strict=True))]
    )
