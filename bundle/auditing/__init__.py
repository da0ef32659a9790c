# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The audit: privacy and fidelity, with controls, by networks that nothing else uses."""
