# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Distances between the feature distributions of two sets of images: KID and the Fréchet distance."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["frechet_distance", "kid"]


def kid(x: Tensor, y: Tensor) -> float:
    """Computes the Kernel Inception Distance (Binkowski et al., arXiv 1801.01401) in the given features.

    It is the unbiased estimator of the squared maximum mean discrepancy with the kernel ``k(a, b) = (a.b / d + 1)^3``
    (equation 4 there). For two samples of one distribution its mean is 0 and its sign varies, so compare values by
    differences and intervals, not by ratios.

    Args:
        x: features ``[N, d]``, N >= 2.
        y: features ``[M, d]``, M >= 2.

    Returns:
        The distance, in units of the kernel (not multiplied by 1000).

    Raises:
        ValueError: a set has fewer than 2 members, or the shapes do not match.
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
    """Computes the squared Fréchet distance between Gaussians fitted to two sets of features.

    It is ``|mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2))`` (Heusel et al., arXiv 1706.08500, equation 6) with
    covariances divided by n - 1. The name FID is reserved for Inception features. The value is biased: it falls as n
    grows, so compare values at equal n only.

    With ``S_x = A^T A`` and ``S_y = B^T B``, the trace of the matrix root is the sum of the singular values of
    ``A B^T``. This is exact also for fewer images than features, where a matrix square root of ``S_x S_y`` fails or
    becomes complex.

    Args:
        x: features ``[N, d]``, N >= 2.
        y: features ``[M, d]``, M >= 2.

    Returns:
        The distance, at least 0, in squared units of the features.

    Raises:
        ValueError: a set has fewer than 2 members, or the shapes do not match.
    """
    x, y = _as_features(x, y)
    a, b = (_covariance_root(features) for features in (x, y))
    covariance_term = a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(a @ b.T).sum()
    return max(0.0, float((x.mean(0) - y.mean(0)).square().sum() + covariance_term))


def _covariance_root(features: Tensor) -> Tensor:
    root = (features - features.mean(0)) / (len(features) - 1) ** 0.5
    # R of the QR decomposition has the same Gram matrix in d rows only, which keeps A B^T small for many images.
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
