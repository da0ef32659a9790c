# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Normalises size and intensity of images, which do not help to identify the patient."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["resized", "standardised"]


def resized(images: Tensor, side: int) -> Tensor:
    """Resizes images [B, C, H, W] to ``side`` pixels in height and width: bilinear, antialiased, in fp32."""
    if tuple(images.shape[-2:]) == (side, side):
        return images.float()
    return F.interpolate(images.float(), size=(side, side), mode="bilinear", align_corners=False, antialias=True)


def standardised(images: Tensor) -> Tensor:
    """Scales every image [B, C, H, W] to mean 0 and standard deviation 1, which removes brightness and contrast."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    deviation = images.std(dim=(1, 2, 3), keepdim=True)
    return (images - mean) / (deviation + 1e-3)
