# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Which images an arm of the comparison is made of.

Arms are chosen from pools: all images that one way of walking has made between the pairs of a seed. The arm with the
gate takes the first that pass, in the order of the pairs, the one without it the first; so both stand on the same pairs
as far as they reach, and the straight lines on the same pairs as the walks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["ARMS", "LONG_ARMS", "POOLS", "Arm", "Pool", "PoolKind", "select"]


@dataclass(frozen=True)
class PoolKind:
    """A way of making images.

    Attributes:
        walk: ``random`` for single samples, else ``linear``, ``plan`` or ``published``.
        long: whether paths have as many points as in the paper's figure, not as `generate` gives them.
    """

    walk: str
    long: bool = False

    @property
    def single(self) -> bool:
        """Whether images stand by themselves, on no path."""
        return self.walk == "random"

    @property
    def grows(self) -> bool:
        """Whether pairs are added until enough images pass the gate."""
        return not self.long and not self.single


POOLS = {
    "random": PoolKind("random"),
    "lines": PoolKind("linear"),
    "walks": PoolKind("plan"),
    "long_lines": PoolKind("linear", long=True),
    "long_walks": PoolKind("plan", long=True),
    "long_published": PoolKind("published", long=True),
}


@dataclass(frozen=True)
class Arm:
    """One line of the tables.

    Attributes:
        title: in the tables.
        pool: name of the pool it is taken from; empty for the real training images.
        gated: whether images must pass the gate.
        common: whether only the pairs count that the published algorithm walks as well.
    """

    title: str
    pool: str = ""
    gated: bool = False
    common: bool = False


#: Arms of equal size, by name.
ARMS = {
    "real": Arm("Real"),
    "random": Arm("Random sampling", "random"),
    "linear": Arm("Linear", "lines"),
    "linear_gate": Arm("Linear + gate", "lines", gated=True),
    "plan": Arm("PLAN", "walks"),
    "plan_gate": Arm("PLAN + gate", "walks", gated=True),
}
#: Arms of long paths, every point of them.
LONG_ARMS = {
    "long_linear": Arm("Linear, long paths", "long_lines"),
    "long_plan": Arm("PLAN, long paths", "long_walks"),
    "common_linear": Arm("Linear, long paths, common pairs", "long_lines", common=True),
    "common_plan": Arm("PLAN, long paths, common pairs", "long_walks", common=True),
    "common_published": Arm("Published algorithm, common pairs", "long_published", common=True),
}


@dataclass(frozen=True)
class Pool:
    """Images of one way of making them, class by class, pair by pair, point by point.

    Attributes:
        pixels: uint8 [M, H, W] or [M, H, W, 3].
        labels: [M].
        pairs: [M], number of the pair within its class.
        passed: [M], whether the gate lets it leave.
        recognised: [M], whether it takes it for a patient.
        mislabelled: [M], whether it sees another class.
    """

    pixels: Tensor
    labels: Tensor
    pairs: Tensor
    passed: Tensor
    recognised: Tensor
    mislabelled: Tensor


def select(pool: Pool, arm: Arm, quotas: Mapping[int, int] | None, n_pairs: int | None = None) -> Tensor:
    """Chooses the images of an arm.

    Args:
        pool: that it is taken from.
        arm: whether it is gated.
        quotas: images wanted of each class; None for all.
        n_pairs: pairs of each class that count; None for all.

    Returns:
        Indices into the pool, class by class; fewer than wanted where the pool has no more.
    """
    parts = []
    for label in pool.labels.unique().tolist():
        chosen = pool.labels == label
        if arm.gated:
            chosen &= pool.passed
        if n_pairs is not None:
            chosen &= pool.pairs < n_pairs
        places = chosen.nonzero()[:, 0]
        parts.append(places if quotas is None else places[: quotas.get(label, 0)])
    return torch.cat(parts)
