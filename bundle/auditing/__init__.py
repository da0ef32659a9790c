# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The audit: measures privacy and fidelity of a cohort, with controls, by networks that neither walk nor gate uses."""
