# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The walk: paths between fixed end points, optimised by gradient descent in W.

Source: Pennisi et al., MICCAI 2023, arXiv 2307.02984, section 2.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bundle.latent.prior import LatentPrior
from bundle.options import OptionError, number_problems
from bundle.walk.guides import Guides
from bundle.walk.objective import Objective

__all__ = ["PUBLISHED_SETTINGS", "Path", "WalkSettings", "straight_path", "walk"]

# Steps over which the loss is averaged to test for convergence.
WINDOW = 10


@dataclass(frozen=True)
class WalkSettings:
    """Step count, learning rate and stopping rule of the walk's optimiser; the defaults are this bundle's.

    Attributes:
        steps: largest number of steps of Adam(0.9, 0.999).
        learning_rate: learning rate of the first step.
        cosine: whether the learning rate decays to 0 along a half cosine over ``steps``; otherwise it is constant.
        tolerance: stops once, for every path of the block, the mean loss of the last 10 steps differs from that of the
            10 before by at most this fraction; 0 never stops early.

    Raises:
        OptionError: a value is of the wrong type or below 0.
    """

    steps: int = 100
    learning_rate: float = 0.085
    cosine: bool = True
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        problems = number_problems(self, {"steps": 0, "learning_rate": 0, "tolerance": 0}, whole=("steps",))
        if not isinstance(self.cosine, bool):
            problems.append(f"cosine must be true or false, not {self.cosine!r}.")
        if problems:
            raise OptionError([f"walk settings: {problem}" for problem in problems])


#: The authors' settings, for comparison.
PUBLISHED_SETTINGS = WalkSettings(steps=500, learning_rate=0.1, cosine=False, tolerance=0.0)


@dataclass(frozen=True)
class Path:
    """Walked paths and the history of their optimisation.

    Attributes:
        w: points, ends included, [P, N, w_dim].
        loss_history: loss of each path at each step, [P, steps].
        terms: weighted terms of the objective at the last step, each [P].
    """

    w: Tensor
    loss_history: Tensor
    terms: dict[str, Tensor]


def straight_path(w_a: Tensor, w_b: Tensor, n_points: int) -> Tensor:
    """Returns N evenly spaced points from w_a to w_b [P, w_dim], both ends included: [P, N, w_dim]."""
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
    """Optimises paths from w_a to w_b.

    Paths do not influence each other's gradients: the loss is their sum, and Adam updates element by element.

    Args:
        w_a: first ends, [P, w_dim].
        w_b: last ends, [P, w_dim].
        label: class of each path, [P].
        n_points: N, points per path, both ends included; at least 3.
        guides: guides evaluated at each inner point.
        prior: distance from the mapping network's distribution.
        objective: loss to minimise.
        settings: step count, learning rate and stopping rule of the optimiser.
        on_step: callback of each step, given the inner points [P, N - 2, w_dim] before the update; clone to keep them.

    Returns:
        The paths; their ends are w_a and w_b unchanged.

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
            terms = objective(path, *_ask(guides, inner), label, prior(inner, label))
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


def _ask(guides: Guides, inner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the guides' values [P, n, ...] at points [P, n, w_dim], in parts to bound memory."""
    points = inner.flatten(0, 1)
    if len(points) <= guides.points_per_call:
        answers = [guides(points)]
    else:  # recomputes the parts' activations in the backward pass instead of keeping them
        answers = [checkpoint(guides, part, use_reentrant=False) for part in points.split(guides.points_per_call)]
    identity, classes, realism = (
        torch.cat(parts).unflatten(0, inner.shape[:2]) for parts in zip(*answers, strict=True)
    )
    return identity, classes, realism


def _settled(loss_history: list[Tensor], tolerance: float) -> bool:
    if len(loss_history) < 2 * WINDOW:
        return False
    now, before = (
        torch.stack(part).mean(dim=0) for part in (loss_history[-WINDOW:], loss_history[-2 * WINDOW : -WINDOW])
    )
    return bool(((before - now).abs() <= tolerance * before.abs()).all())
