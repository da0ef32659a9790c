# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Latent codes: draws, end points, where the mapping network puts its samples."""
