# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""What leaves: the ledger of a run, the gate put to work, the cohort and its page."""
