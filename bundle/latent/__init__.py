# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Latent codes: samples, inversions of real images, k-same centroids, pairs of end points, the distribution of W."""
