# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The walk as a MONAI inferer: a batch of end points in, a batch of paths out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from bundle.latent.prior import LatentPrior
from bundle.networks.stylegan2 import Generator
from bundle.walk.guides import Guides
from bundle.walk.objective import Objective, make_objective
from bundle.walk.path import WalkSettings, straight_path, walk

__all__ = ["SETTINGS", "PlanWalkInferer"]

#: How the walk descends on an objective: for ``published`` as the authors do.
SETTINGS = {
    "balanced": WalkSettings(steps=100, learning_rate=0.085, cosine=True, tolerance=1e-3),
    "published": WalkSettings(steps=500, learning_rate=0.1, cosine=False, tolerance=0.0),
}


class PlanWalkInferer(Inferer):
    """Turns pairs of latent end points into PLAN paths.

    Args:
        guides: what is asked about each point.
        prior: of the generator's mapping network.
        n_points: points of a path, both ends included.
        objective: name of an objective, see `bundle.walk.objective.OBJECTIVES`.
        weights: of the objective's terms, see `bundle.walk.objective.make_objective`.
        on_step: called in each step of a walk, see `bundle.walk.path.walk`.
    """

    def __init__(
        self,
        guides: Guides,
        prior: LatentPrior,
        n_points: int = 10,
        objective: str = "balanced",
        weights: Mapping[str, float] | None = None,
        on_step: Callable[[Tensor], None] | None = None,
    ) -> None:
        super().__init__()
        self.guides = guides
        self.prior = prior
        self.n_points = n_points
        self.objective: Objective = make_objective(objective, weights)
        self.settings = SETTINGS[objective]
        self.on_step = on_step

    def __call__(self, inputs: Tensor, network: Generator, label: Tensor, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Walks.

        Args:
            inputs: end points z, [P, 2, z_dim].
            network: G.
            label: class of each pair, [P].
            **kwargs: none; part of the interface.

        Returns:
            ``w`` and ``w_linear`` [P, N, w_dim]: the points of the walked and of the straight path; ``loss_history``
            [P, steps]: the loss; ``terms``: the objective's terms at the last step, each [P].
        """
        with torch.no_grad():
            ends = network.mapping(inputs.flatten(0, 1), label.repeat_interleave(2)).unflatten(0, inputs.shape[:2])
        path = walk(
            ends[:, 0],
            ends[:, 1],
            label,
            self.n_points,
            self.guides,
            self.prior,
            self.objective,
            self.settings,
            self.on_step,
        )
        return {
            "w": path.w,
            "w_linear": straight_path(ends[:, 0], ends[:, 1], self.n_points),
            "loss_history": path.loss_history,
            "terms": path.terms,
        }
