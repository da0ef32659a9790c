# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Distances and statistics between sets of images."""

from __future__ import annotations

from bundle.metrics.distribution import frechet_distance, kid, kid_subsets
from bundle.metrics.features import FEATURES, TrunkUnavailable, squeezenet_features, squeezenet_trunk
from bundle.metrics.lpips import LPIPS_TRUNK, embed, lpips_model, mean_pairwise, nearest, pairwise, pairwise_within

__all__ = [
    "FEATURES",
    "LPIPS_TRUNK",
    "TrunkUnavailable",
    "embed",
    "frechet_distance",
    "kid",
    "kid_subsets",
    "lpips_model",
    "mean_pairwise",
    "nearest",
    "pairwise",
    "pairwise_within",
    "squeezenet_features",
    "squeezenet_trunk",
]
