# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The likelihood-ratio attack with shadow generators (Carlini et al., arXiv 2112.03570).

For each image, the scores of the shadows that were trained on it and of those that were not give two Gaussians; the
score of an attacked generator is judged by the ratio of their densities (algorithm 1 and equation 4).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Gaussians", "fit", "leave_one_out", "log_likelihood_ratio", "standardised"]

# Fewest shadows on one side for a variance of the image's own; the paper pools the variance for fewer than 64 shadows.
OWN_VARIANCE = 32
# Smallest effect of membership on all images, in standard deviations of an image's scores.
LEAST_EFFECT = 0.05


@dataclass(frozen=True)
class Gaussians:
    """For each image, the distribution of the score with and without the image in training; tensors are [P]."""

    mean_in: Tensor
    mean_out: Tensor
    variance_in: Tensor
    variance_out: Tensor


def standardised(scores: Tensor) -> Tensor:
    """Centres and scales the scores [S, P] of each generator by the median and median deviation of its images.

    One generator comes nearer to all images than another; only an image's place among all others tells of its
    membership.
    """
    centred = scores.double() - scores.double().median(dim=1, keepdim=True).values
    return centred / centred.abs().median(dim=1, keepdim=True).values.clamp_min(1e-12)


def fit(scores: Tensor, member: Tensor) -> Gaussians:
    """Fits two Gaussians to the scores of each image.

    A handful of shadows gives a poor mean for each side. So the effect of membership on an image is shrunk towards that
    on all images by the share of its variance that is noise (DerSimonian and Laird, 1986), and an image that all
    shadows, or none, were trained on gets the effect on all images.

    Args:
        scores: standardised scores [S, P] of S shadows, S >= 1.
        member: whether each shadow was trained on each image, bool [S, P].
    """
    inside, n = member.double(), len(member)
    n_in = inside.sum(dim=0)
    n_out = n - n_in
    weight = n_in * n_out / n
    mean_in = (scores * inside).sum(dim=0) / n_in.clamp_min(1)
    mean_out = (scores * (1 - inside)).sum(dim=0) / n_out.clamp_min(1)
    residual = scores - torch.where(member, mean_in, mean_out)
    noise, has_noise = _pooled(residual.square().sum(), (n_in - 1).clamp_min(0) + (n_out - 1).clamp_min(0))
    effect = mean_in - mean_out
    if bool(weight.any()):
        overall = float((weight * effect).sum() / weight.sum())
        heterogeneity = float((weight * (effect - overall).square()).sum()) - noise * (int((weight > 0).sum()) - 1)
        spread = max(0.0, heterogeneity / float((weight.sum() - weight.square().sum() / weight.sum()).clamp_min(1e-12)))
    else:
        overall, spread = float(scores[member].mean() - scores[~member].mean()), 0.0
    # Training on an image does not keep a generator away from it: a negative effect on all images is noise.
    overall = max(overall, LEAST_EFFECT * noise**0.5)
    share = weight * spread / (weight * spread + noise) if has_noise else torch.zeros_like(weight)
    effect = overall + share * torch.where(weight > 0, effect - overall, 0.0)
    base = (scores - effect * inside).mean(dim=0)
    variances = [_variances(residual, side, noise) for side in (inside, 1 - inside)]
    return Gaussians(base + effect, base, *variances)


def _pooled(squares: Tensor, freedom: Tensor) -> tuple[float, bool]:
    """Returns a variance from the squares of all images; 1 and False where there are no degrees of freedom."""
    total = float(freedom.sum())
    return (max(float(squares) / total, 1e-12), True) if total > 0 else (1.0, False)


def _variances(residual: Tensor, side: Tensor, noise: float) -> Tensor:
    """Returns the variance [P] of each image's scores on one side: its own, or that of all images where few."""
    n = side.sum(dim=0)
    squares = (residual.square() * side).sum(dim=0)
    pooled, known = _pooled(squares.sum(), (n - 1).clamp_min(0))
    own = squares / (n - 1).clamp_min(1)
    return torch.where(n >= OWN_VARIANCE, own, pooled if known else noise).clamp_min(1e-12)


def log_likelihood_ratio(scores: Tensor, gaussians: Gaussians) -> Tensor:
    """Returns the logarithm [P] of how much likelier the scores [P] are with the image in training than without."""

    def log_density(mean: Tensor, variance: Tensor) -> Tensor:
        return -((scores - mean).square() / variance + variance.log()) / 2

    return log_density(gaussians.mean_in, gaussians.variance_in) - log_density(
        gaussians.mean_out, gaussians.variance_out
    )


def leave_one_out(scores: Tensor, member: Tensor) -> Tensor:
    """Attacks each shadow by all others.

    Args:
        scores: standardised scores [S, P] of S shadows, S >= 2.
        member: whether each shadow was trained on each image, bool [S, P]; that of the attacked one is not used.

    Returns:
        Log likelihood ratios [S, P].
    """
    found = []
    for target in range(len(scores)):
        others = torch.arange(len(scores)) != target
        found.append(log_likelihood_ratio(scores[target], fit(scores[others], member[others])))
    return torch.stack(found)
