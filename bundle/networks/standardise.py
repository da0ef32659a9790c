# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""How networks that judge images even out what says nothing of whom an image shows."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["resized", "standardised"]


def resized(images: Tensor, side: int) -> Tensor:
    """Brings images [B, C, H, W] to ``side`` pixels in height and width: bilinear, antialiased, in fp32."""
    if tuple(images.shape[-2:]) == (side, side):
        return images.float()
    return F.interpolate(images.float(), size=(side, side), mode="bilinear", align_corners=False, antialias=True)


def standardised(images: Tensor) -> Tensor:
    """Brings every image [B, C, H, W] to mean 0 and standard deviation 1: brighter, darker or paler is all the same."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    deviation = images.std(dim=(1, 2, 3), keepdim=True)
    return (images - mean) / (deviation + 1e-3)
