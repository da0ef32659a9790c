# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The walk as a MONAI inferer, which turns a batch of end points into a batch of paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from bundle.latent.prior import LatentPrior
from bundle.networks.stylegan2 import Generator
from bundle.walk.guides import Guides
from bundle.walk.objective import Objective
from bundle.walk.path import WalkSettings, straight_path, walk

__all__ = ["PlanWalkInferer"]


class PlanWalkInferer(Inferer):
    """Turns pairs of latent end points into PLAN paths.

    Args:
        guides: guides evaluated at each inner point.
        prior: distance from the distribution of the generator's mapping network.
        objective: loss that each path minimises.
        settings: step count, learning rate and stopping rule of the optimiser.
        n_points: points per path, both ends included.
        on_step: callback of each optimisation step, see `bundle.walk.path.walk`.
        ends_in_w: whether the end points are w, as centroids are, rather than z.
    """

    def __init__(
        self,
        guides: Guides,
        prior: LatentPrior,
        objective: Objective,
        settings: WalkSettings,
        n_points: int = 10,
        on_step: Callable[[Tensor], None] | None = None,
        ends_in_w: bool = False,
    ) -> None:
        super().__init__()
        self.guides = guides
        self.prior = prior
        self.objective = objective
        self.settings = settings
        self.n_points = n_points
        self.on_step = on_step
        self.ends_in_w = ends_in_w

    def __call__(self, inputs: Tensor, network: Generator, label: Tensor, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Walks a batch of pairs.

        Args:
            inputs: end points z, [P, 2, z_dim], or w, [P, 2, w_dim].
            network: G.
            label: class of each pair, [P].
            **kwargs: unused; part of the interface.

        Returns:
            ``w`` and ``w_linear`` [P, N, w_dim]: points of the walked and of the straight path; ``loss_history`` [P,
            steps]: loss at each step; ``terms``: weighted terms of the objective at the last step, each [P].
        """
        ends = inputs
        if not self.ends_in_w:
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
