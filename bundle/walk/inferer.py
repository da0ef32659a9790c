# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The walk as a MONAI inferer: a batch of end points in, a batch of paths out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from bundle.latent.prior import LatentPrior
from bundle.networks.stylegan2 import Generator
from bundle.walk.objective import OBJECTIVES, Objective
from bundle.walk.path import Guides, WalkSettings, straight_path, walk

__all__ = ["PlanWalkInferer", "walk_settings"]

SETTINGS = {
    "balanced": WalkSettings(steps=60, learning_rate=0.02, cosine=True, tolerance=1e-3),
    "published": WalkSettings(steps=500, learning_rate=0.1, cosine=False, tolerance=0.0, clamped_gradient=True),
}


def walk_settings(objective: str) -> WalkSettings:
    """How the walk descends on an objective: for ``published`` as the authors do."""
    return SETTINGS[objective]


class PlanWalkInferer(Inferer):
    """Turns pairs of latent end points into PLAN paths.

    Args:
        identity_guide: phi_id.
        class_guide: phi_class.
        prior: of the generator's mapping network.
        n_points: points of a path, both ends included.
        objective: name of an objective, see `bundle.walk.objective.OBJECTIVES`.
        amp: bf16 autocast.
        on_step: called after each step of a walk.
    """

    def __init__(
        self,
        identity_guide: nn.Module,
        class_guide: nn.Module,
        prior: LatentPrior,
        n_points: int = 10,
        objective: str = "balanced",
        amp: bool = True,
        on_step: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self.identity_guide = identity_guide
        self.class_guide = class_guide
        self.prior = prior
        self.n_points = n_points
        self.objective: Objective = OBJECTIVES[objective]()
        self.settings = walk_settings(objective)
        self.amp = amp
        self.on_step = on_step

    def __call__(self, inputs: Tensor, network: Generator, label: Tensor, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Walks.

        Args:
            inputs: end points z, [P, 2, z_dim].
            network: G.
            label: class of each pair, [P].
            **kwargs: none; part of the interface.

        Returns:
            ``w`` and ``w_linear`` [P, N, w_dim]: the points of the walked and of the straight path; ``course``
            [P, steps]: the loss; ``terms``: the objective's terms at the last step, each [P].
        """
        with torch.no_grad():
            ends = network.mapping(inputs.flatten(0, 1), label.repeat_interleave(2)).unflatten(0, inputs.shape[:2])
        guides = Guides(network, self.identity_guide, self.class_guide, self.settings.clamped_gradient, self.amp)
        path = walk(
            ends[:, 0],
            ends[:, 1],
            label,
            self.n_points,
            guides,
            self.prior,
            self.objective,
            self.settings,
            self.on_step,
        )
        return {
            "w": path.w,
            "w_linear": straight_path(ends[:, 0], ends[:, 1], self.n_points),
            "course": path.course,
            "terms": path.terms,
        }
