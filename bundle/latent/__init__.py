# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Latent codes: samples, pairs of end points, the distribution of the mapping network's samples."""
