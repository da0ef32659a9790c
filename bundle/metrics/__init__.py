# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Measures between sets of images. A leaf: any stage may import it, it imports no stage."""
