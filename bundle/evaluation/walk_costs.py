# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The computational cost of a released image for each kind of walk of the benchmark."""

from __future__ import annotations

import dataclasses

from bundle.evaluation.walkers import Judged, Walk, Walker, published_walk, straight_lines
from bundle.markup import three_digits
from bundle.walk.objective import BalancedObjective, PublishedObjective
from bundle.walk.path import PUBLISHED_SETTINGS, WalkSettings

__all__ = ["WALKS", "compared_walks", "cost", "cost_table", "shortened"]

# Sizes of cohorts over which the cost of distilling the latent guides is distributed.
COHORTS = (100, 1000, 10_000)
#: Names of the kinds of walk that are compared.
WALKS = ("linear", "published", "image", "latent")


def compared_walks(objective: BalancedObjective) -> dict[str, Walk]:
    """Returns each of `WALKS` by name, those of PLAN with the given objective."""
    latent = Walk("latent guides", objective, WalkSettings(), "latent")
    image = dataclasses.replace(latent, title="batched, image space", guides="image")
    published = published_walk(PublishedObjective(), PUBLISHED_SETTINGS)
    return {"linear": straight_lines(latent), "published": published, "image": image, "latent": latent}


def shortened(walk: Walk, steps: int) -> Walk:
    """Returns the walk with at most ``steps`` steps."""
    return dataclasses.replace(walk, settings=dataclasses.replace(walk.settings, steps=min(steps, walk.settings.steps)))


def cost(judged: Judged) -> tuple[float, float]:
    """Computes CPU and wall seconds per released image, for walk, synthesis and gate, including rejected points."""
    released = sum(int(verdict.passed.sum()) for parts in judged.verdicts for verdict in parts)
    if not released:
        return float("nan"), float("nan")
    return (
        (judged.walking.cpu + judged.judging.cpu) / released,
        (judged.walking.wall + judged.judging.wall) / released,
    )


def cost_table(walkers: dict[str, Walker], memory: dict[str, float], distillation: float) -> list[tuple[str, ...]]:
    """Returns a table of costs per released image, given peak memory in MiB and CPU seconds of the distillation."""
    judged = [walker.judged for walker in walkers.values()]
    points = sum(verdict.passed.numel() for one in judged for parts in one.verdicts for verdict in parts)
    unit = sum(one.judging.cpu for one in judged) / points
    costs = {name: cost(walker.judged) for name, walker in walkers.items()}
    spread = [f"with distillation, over {n}" for n in COHORTS]
    rows = [("walk", "paths", "steps", "CPU s", "wall s", "units", "times cheaper", "peak MiB", *spread)]
    for name, walker in walkers.items():
        cpu, wall = costs[name]
        steps = walker.judged.steps
        extra = [cpu + distillation / n if name == "latent" else cpu for n in COHORTS]
        rows.append(
            (
                walker.way.title,
                str(len(steps)),
                f"{sum(steps) / len(steps):.0f}",
                three_digits(cpu),
                three_digits(wall),
                three_digits(cpu / unit),
                f"{costs['published'][0] / cpu:.0f}" if "published" in costs else "",
                f"{memory[name]:.0f}",
                *map(three_digits, extra),
            )
        )
    return rows
