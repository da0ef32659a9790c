# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""What the writers of file formats share: an image of a cohort with its class, and texts of limited length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["CohortImage", "cut_to_bytes"]


@dataclass(frozen=True)
class CohortImage:
    """An image of a cohort.

    Attributes:
        pixels: uint8 [H, W], or RGB [H, W, 3]; 0 is black.
        label: label of its class.
        label_name: name of its class.
        modality: name of the kind of image; "" if unknown.
    """

    pixels: NDArray[np.uint8]
    label: int
    label_name: str
    modality: str = ""


def cut_to_bytes(text: str, most: int) -> str:
    """Returns as much of a text's beginning as fits into a number of bytes of UTF-8, without half a character."""
    return text.encode()[:most].decode(errors="ignore")
