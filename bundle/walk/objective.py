# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The objective of the walk, in the paper's symbols.

Source: Pennisi et al., "A Privacy-Preserving Walk in the Latent Space of Generative Models for Medical Applications",
MICCAI 2023, arXiv 2307.02984:

    L = lambda_id L_id + lambda_dist L_dist + lambda_class L_class

    L_id    = KL(uniform || softmax(phi_id(G(w_i))))      all identities equally likely: no patient is recognised
    L_dist  = sum_i |w_i - w_(i+1)|^2                     short, evenly spaced steps
    L_class = CE(phi_class(G(w_i)), y)                    the image keeps its class

Shapes: P paths of N points, of which the n = N - 2 inner points w_1 .. w_n move and the two ends are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.metrics.recognition import divergence_from_uniform
from bundle.options import OptionError, number_problems

__all__ = [
    "SOUND",
    "BalancedObjective",
    "Objective",
    "PublishedObjective",
    "class_cross_entropy",
    "identity_divergence",
    "step_lengths",
]

#: d_0 of L_real: images nearer to real ones are left alone. Real images have a distance of about 1; the bar is lower
#: because walks stop just below it, where errors of the latent guide still let unrealistic images through.
SOUND = 2 / 3


def identity_divergence(logits: Tensor) -> Tensor:
    """KL(uniform || p) = -log K - 1/K sum_k log p_k for p = softmax(logits).

    Args:
        logits: logits of phi_id, [..., K].

    Returns:
        [...], in nats; 0 where all identities are equally likely.
    """
    return divergence_from_uniform(logits)


def class_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """-log softmax(logits)_y, in nats.

    Args:
        logits: logits of phi_class, [P, n, classes].
        label: y of each path, [P].

    Returns:
        [P, n].
    """
    return -_of_label(F.log_softmax(logits.float(), dim=-1), label)


def _of_label(values: Tensor, label: Tensor) -> Tensor:
    """Returns the values [P, n] of each path's label, from values [P, n, classes]."""
    return values.gather(2, label.view(-1, 1, 1).expand(-1, values.shape[1], 1)).squeeze(2)


def step_lengths(w: Tensor) -> Tensor:
    """|w_i - w_(i+1)|, [P, N - 1], for paths w [P, N, w_dim]."""
    # The square root's gradient at 0 is infinite; coinciding points must still be able to separate.
    return ((w[:, 1:] - w[:, :-1]).square().sum(dim=2) + 1e-12).sqrt()


class Objective(Protocol):
    """Interface of the walk's loss, one value per path, from its points and the guides' logits at the inner points.

    Attributes:
        name: short name for manifests and tables.
        clamped_gradient: whether saturated pixels have zero gradient, see `bundle.walk.guides.ImageGuides`.
        realistic: whether it has a term L_real, which needs the distances from real images.
    """

    name: ClassVar[str]
    clamped_gradient: ClassVar[bool]
    realistic: ClassVar[bool]

    def __call__(
        self, w: Tensor, identity: Tensor, classes: Tensor, realism: Tensor, label: Tensor, prior: Tensor
    ) -> dict[str, Tensor]:
        """Returns the weighted terms by name and their sum as ``loss``, each [P].

        Args:
            w: paths, ends included, [P, N, w_dim].
            identity: phi_id's logits at the inner points, [P, n, K].
            classes: phi_class's logits at the inner points, [P, n, classes].
            realism: log(1 + d) of the inner points' distances d from real images of each class, [P, n, classes].
            label: y of each path, [P].
            prior: distance of the inner points from the mapping network's distribution, [P, n], typically 1.
        """


def _check_weights(
    objective: PublishedObjective | BalancedObjective, least: Mapping[str, int] | None = None, whole: Sequence[str] = ()
) -> None:
    """Raises an OptionError for a weight that is no number or below 0: it would lead the walk towards patients."""
    bounds = {field.name: 0 for field in fields(objective)} | dict(least or {})
    if problems := number_problems(objective, bounds, whole):
        raise OptionError([f"{objective.name} objective: {problem}" for problem in problems])


@dataclass(frozen=True)
class PublishedObjective:
    """The authors' loss exactly as published, for comparison.

    They evaluate the guides on chunks of 4 images, average over each chunk and sum over the chunks: with n inner
    points, L_id and L_class are about n / 4 times the mean, and a smaller last chunk weighs more per point.

    Attributes:
        lambda_id: weight of L_id.
        lambda_dist: weight of L_dist.
        lambda_class: weight of L_class.
        chunk: inner points per chunk.
    """

    name: ClassVar[str] = "published"
    clamped_gradient: ClassVar[bool] = True
    realistic: ClassVar[bool] = False

    lambda_id: float = 0.1
    lambda_dist: float = 1.0
    lambda_class: float = 1.0
    chunk: int = 4

    def __post_init__(self) -> None:
        _check_weights(self, {"chunk": 1}, whole=("chunk",))

    def __call__(
        self, w: Tensor, identity: Tensor, classes: Tensor, realism: Tensor, label: Tensor, prior: Tensor
    ) -> dict[str, Tensor]:
        """See `Objective.__call__`; the published loss uses neither realism nor prior."""
        terms = {
            "identity": self.lambda_id * self._chunked(identity_divergence(identity)),
            "distance": self.lambda_dist * (w[:, 1:] - w[:, :-1]).square().sum(dim=(1, 2)),
            "class": self.lambda_class * self._chunked(class_cross_entropy(classes, label)),
        }
        return {**terms, "loss": torch.stack(list(terms.values())).sum(dim=0)}

    def _chunked(self, values: Tensor) -> Tensor:
        return torch.stack([part.mean(dim=1) for part in values.split(self.chunk, dim=1)]).sum(dim=0)


@dataclass(frozen=True)
class BalancedObjective:
    """The paper's three terms as means that do not depend on N, and terms for spacing, plausibility and realism.

    With l_i the steps and d = |w_a - w_b|:

        L_id    = mean_i max(0, KL(uniform || softmax(phi_id(G(w_i)))) - kappa)
        L_dist  = (sum_i l_i / d)^2                length of the path relative to the straight line: 1 or more
        L_even  = (N - 1) sum_i (l_i / sum l)^2    spacing: 1 where all steps are equal, N - 1 for a single long step
        L_prior = mean_i max(0, m_i - 1)           m_i: distance from the mapping network's distribution, typically 1
        L_real  = mean_i max(0, log((1 + d_i) / (1 + d_0)))  d_i: distance of G(w_i) from real images of class y

    L_dist L_even equals the published L_dist times (N - 1) / d^2. As separate terms, the spacing can have a large
    weight (points that collapse onto one location give the same image) while the path can detour around patients.

    phi_id finds some likeness to its patients in images of strangers, too. Below kappa, which is measured on these, the
    published L_id still falls, but only towards images that no real one resembles.

    Attributes:
        lambda_id: weight of L_id.
        lambda_dist: weight of L_dist.
        lambda_class: weight of the mean of L_class.
        lambda_even: weight of L_even.
        lambda_prior: weight of L_prior.
        lambda_real: weight of L_real, which bends paths around places where the generator's images are ruined.
        kappa: identity divergence of a stranger's image, in nats; 0 lowers that of every point, as published.
    """

    name: ClassVar[str] = "balanced"
    clamped_gradient: ClassVar[bool] = False
    realistic: ClassVar[bool] = True

    lambda_id: float = 5.0
    lambda_dist: float = 0.02
    lambda_class: float = 5.0
    lambda_even: float = 1.0
    lambda_prior: float = 1.0
    lambda_real: float = 20.0
    kappa: float = 0.0

    def __post_init__(self) -> None:
        _check_weights(self)

    def __call__(
        self, w: Tensor, identity: Tensor, classes: Tensor, realism: Tensor, label: Tensor, prior: Tensor
    ) -> dict[str, Tensor]:
        """See `Objective.__call__`."""
        steps = step_lengths(w)
        length = steps.sum(dim=1)
        straight = (w[:, -1] - w[:, 0]).norm(dim=1)
        recognised = (identity_divergence(identity) - self.kappa).clamp_min(0.0)
        terms = {
            "identity": self.lambda_id * recognised.mean(dim=1),
            "distance": self.lambda_dist * (length / straight).square(),
            "class": self.lambda_class * class_cross_entropy(classes, label).mean(dim=1),
            "even": self.lambda_even * steps.shape[1] * (steps / length.unsqueeze(1)).square().sum(dim=1),
            "prior": self.lambda_prior * (prior - 1.0).clamp_min(0.0).mean(dim=1),
            "real": self.lambda_real * (_of_label(realism, label) - math.log1p(SOUND)).clamp_min(0.0).mean(dim=1),
        }
        return {**terms, "loss": torch.stack(list(terms.values())).sum(dim=0)}
