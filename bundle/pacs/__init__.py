# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Image archives (PACS): stores cohorts there, by STOW-RS or C-STORE."""
