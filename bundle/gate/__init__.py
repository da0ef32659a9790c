# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""What may leave: networks and thresholds that the walk never differentiates."""
