# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""How far apart two sets of images are, as distributions of features."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["frechet_distance", "kid"]


def kid(x: Tensor, y: Tensor) -> float:
    """Kernel Inception Distance (Binkowski et al., arXiv 1801.01401), in whatever features are given.

    The unbiased estimator of the squared maximum mean discrepancy under the kernel ``k(a, b) = (a.b / d + 1)^3``
    (equation 4 there): it is near 0, and as often below as above, for two samples of one distribution. Compare it by
    differences and intervals, not by ratios.

    Args:
        x: features ``[N, d]``, N >= 2.
        y: features ``[M, d]``, M >= 2.

    Returns:
        The distance, in units of the kernel (not multiplied by 1000).

    Raises:
        ValueError: a set is too small, or the shapes do not fit.
    """
    x, y = _as_features(x, y)
    n, m = len(x), len(y)
    within_x = _kernel(x, x)
    within_y = _kernel(y, y)
    value = (
        (within_x.sum() - within_x.diagonal().sum()) / (n * (n - 1))
        + (within_y.sum() - within_y.diagonal().sum()) / (m * (m - 1))
        - 2 * _kernel(x, y).mean()
    )
    return float(value)


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Squared Frechet distance between the Gaussians fitted to two sets of features.

    ``|mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2))`` (Heusel et al., arXiv 1706.08500, equation 6), with
    covariances divided by n - 1. It is called FID only in Inception features; elsewhere name the features. It falls as
    n grows, so compare values at equal n only.

    With ``S_x = A^T A`` and ``S_y = B^T B`` the trace of the root is the sum of the singular values of ``A B^T``: exact
    for fewer images than features too, where a matrix square root of ``S_x S_y`` fails or turns complex.

    Args:
        x: features ``[N, d]``, N >= 2.
        y: features ``[M, d]``, M >= 2.

    Returns:
        The distance, in squared units of the features, never below 0.

    Raises:
        ValueError: a set is too small, or the shapes do not fit.
    """
    x, y = _as_features(x, y)
    a, b = (_covariance_root(features) for features in (x, y))
    covariance_term = a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(a @ b.T).sum()
    return max(0.0, float((x.mean(0) - y.mean(0)).square().sum() + covariance_term))


def _covariance_root(features: Tensor) -> Tensor:
    root = (features - features.mean(0)) / (len(features) - 1) ** 0.5
    # R of the QR decomposition has the same R^T R in d rows: keeps the later product small for many images.
    return torch.linalg.qr(root, mode="r").R if len(root) > root.shape[1] else root


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _as_features(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"Two sets of features [N, d] and [M, d] with at least 2 members each are needed, not {list(x.shape)} and "
            f"{list(y.shape)}."
        )
    return x.double(), y.double()
