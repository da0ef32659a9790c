# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Latent codes: samples, pairs of end points, the prior of the mapping network."""
