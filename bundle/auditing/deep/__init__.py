# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Attacks on the generator itself, beside the audit of a cohort: the option ``deep`` of the command ``audit``."""
