# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Releases: packs the images of a cohort that passed audit and review into one archive."""
