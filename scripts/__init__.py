# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""What configurations run: one file per command, which puts stages of ``bundle`` together."""
