# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Metrics of images and sets of images: KID, Fréchet distance, LPIPS, copy detection, identity recognition."""
