# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The walk: paths between held end points, bent by gradient descent in W.

Source: Pennisi et al., MICCAI 2023, arXiv 2307.02984, section 2.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bundle.latent.prior import LatentPrior
from bundle.walk.guides import Guides
from bundle.walk.objective import Objective

__all__ = ["PUBLISHED_SETTINGS", "Path", "WalkSettings", "straight_path", "walk"]

# Steps over which the loss is averaged before it is called settled.
WINDOW = 10


@dataclass(frozen=True)
class WalkSettings:
    """How the walk descends; the defaults are PLAN's.

    Attributes:
        steps: most steps of Adam(0.9, 0.999).
        learning_rate: at the first step.
        cosine: let the learning rate fall to 0 along a half cosine over ``steps``; else it is constant.
        tolerance: stop once the mean loss of the last 10 steps is within this share of the 10 before, for every path of
            the block; 0 never stops early.
    """

    steps: int = 100
    learning_rate: float = 0.085
    cosine: bool = True
    tolerance: float = 1e-3


#: The authors' settings, for comparison.
PUBLISHED_SETTINGS = WalkSettings(steps=500, learning_rate=0.1, cosine=False, tolerance=0.0)


@dataclass(frozen=True)
class Path:
    """Paths and how they came about.

    Attributes:
        w: points, ends included, [P, N, w_dim].
        loss_history: loss of each path at each step, [P, steps].
        terms: weighted terms of the objective at the last step, each [P].
    """

    w: Tensor
    loss_history: Tensor
    terms: dict[str, Tensor]


def straight_path(w_a: Tensor, w_b: Tensor, n_points: int) -> Tensor:
    """N evenly spaced points from w_a to w_b [P, w_dim], both ends included: [P, N, w_dim]."""
    share = torch.linspace(0.0, 1.0, n_points, device=w_a.device).view(1, -1, 1)
    return torch.lerp(w_a.unsqueeze(1), w_b.unsqueeze(1), share)


def walk(
    w_a: Tensor,
    w_b: Tensor,
    label: Tensor,
    n_points: int,
    guides: Guides,
    prior: LatentPrior,
    objective: Objective,
    settings: WalkSettings,
    on_step: Callable[[Tensor], None] | None = None,
) -> Path:
    """Walks from w_a to w_b.

    Paths do not influence each other: the loss is their sum, and Adam works on each number alone.

    Args:
        w_a: first ends, [P, w_dim].
        w_b: last ends, [P, w_dim].
        label: class of each path, [P].
        n_points: N, points of a path with both ends, 3 or more.
        guides: what is asked about each inner point.
        prior: of the mapping network.
        objective: what is minimised.
        settings: how.
        on_step: called in each step with the inner points [P, N - 2, w_dim] before they move; to keep them, clone them.

    Returns:
        The paths; the ends are those that came in.

    Raises:
        ValueError: ``n_points`` leaves no inner point.
    """
    if n_points < 3:
        raise ValueError(f"n_points counts both ends: {n_points} leaves no point to walk on. Give at least 3.")
    w = straight_path(w_a, w_b, n_points)
    inner = w[:, 1:-1].clone().requires_grad_(True)
    optimizer = torch.optim.Adam([inner], lr=settings.learning_rate, betas=(0.9, 0.999))
    loss_history: list[Tensor] = []
    terms: dict[str, Tensor] = {}
    for step in range(settings.steps):
        if settings.cosine:
            share = torch.tensor(step / settings.steps * torch.pi)
            optimizer.param_groups[0]["lr"] = settings.learning_rate * float(0.5 * (1.0 + torch.cos(share)))
        with torch.enable_grad():
            path = torch.cat([w[:, :1], inner, w[:, -1:]], dim=1)
            identity, classes = _ask(guides, inner)
            terms = objective(path, identity, classes, label, prior(inner, label))
            (gradient,) = torch.autograd.grad(terms["loss"].sum(), [inner])
        if on_step is not None:
            on_step(inner.detach())
        inner.grad = gradient
        optimizer.step()
        loss_history.append(terms["loss"].detach())
        if settings.tolerance > 0 and _settled(loss_history, settings.tolerance):
            break
    return Path(
        w=torch.cat([w[:, :1], inner.detach(), w[:, -1:]], dim=1),
        loss_history=torch.stack(loss_history, dim=1) if loss_history else w.new_zeros(len(w), 0),
        terms={name: value.detach() for name, value in terms.items()},
    )


def _ask(guides: Guides, inner: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [P, n, K] and [P, n, classes] of the points [P, n, w_dim], in parts where they are too many for one."""
    points = inner.flatten(0, 1)
    if len(points) <= guides.points_per_call:
        answers = [guides(points)]
    else:  # the parts' activations are not kept but computed again on the way back
        answers = [checkpoint(guides, part, use_reentrant=False) for part in points.split(guides.points_per_call)]
    identity, classes = (torch.cat(parts).unflatten(0, inner.shape[:2]) for parts in zip(*answers, strict=True))
    return identity, classes


def _settled(loss_history: list[Tensor], tolerance: float) -> bool:
    if len(loss_history) < 2 * WINDOW:
        return False
    now, before = (
        torch.stack(part).mean(dim=0) for part in (loss_history[-WINDOW:], loss_history[-2 * WINDOW : -WINDOW])
    )
    return bool(((before - now).abs() <= tolerance * before.abs()).all())
