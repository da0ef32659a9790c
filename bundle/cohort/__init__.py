# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Cohorts: the ledger of a run, the released files, their datasheet."""
