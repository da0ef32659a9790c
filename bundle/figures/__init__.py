# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Image grids and charts for reports."""

from __future__ import annotations

from bundle.figures.grids import contact_sheet, from_uint8, image_grid, png_bytes, save_png, to_uint8

__all__ = ["contact_sheet", "from_uint8", "image_grid", "png_bytes", "save_png", "to_uint8"]
