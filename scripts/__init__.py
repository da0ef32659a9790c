# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Functions that the configurations run: one file per command, which combines stages of ``bundle``."""
