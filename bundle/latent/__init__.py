# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Latent codes: samples, pairs of end points, inversions of real images, the distribution of W."""
