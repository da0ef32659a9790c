# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Programs for those who develop the bundle: benchmarks, planted copies, subsets, and the shipping of weights."""
