# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Deterministic image alterations, used to disguise copies of images and to test how robust recognition is.

Every function maps images [N, C, H, W] in [-1, 1] to images of the same shape. Results may leave [-1, 1]: clamp them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.io import decode_jpeg, encode_jpeg
from torchvision.transforms.v2 import functional as transforms

__all__ = [
    "affine",
    "blur",
    "coarse",
    "contrast",
    "elastic",
    "gamma",
    "jpeg",
    "noise",
    "occlude",
    "perspective",
    "posterise",
    "resize",
    "rotate",
    "shift",
]


def affine(images: Tensor, rows: list[list[float]]) -> Tensor:
    """Applies a 2 x 3 affine matrix, from output to input coordinates in [-1, 1], with edge-pixel padding."""
    matrix = torch.tensor([rows], dtype=images.dtype, device=images.device).expand(len(images), 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def rotate(images: Tensor, degrees: float) -> Tensor:
    """Rotates images about their centre by an angle in degrees."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return affine(images, [[cos, -sin, 0.0], [sin, cos, 0.0]])


def shift(images: Tensor, right: float, down: float) -> Tensor:
    """Translates images to the right and down by fractions of their side."""
    return affine(images, [[1.0, 0.0, -2.0 * right], [0.0, 1.0, -2.0 * down]])


def resize(images: Tensor, factor: float) -> Tensor:
    """Zooms images about their centre by ``factor`` (above 1 enlarges); the image size does not change."""
    return affine(images, [[1.0 / factor, 0.0, 0.0], [0.0, 1.0 / factor, 0.0]])


def perspective(images: Tensor, share: float) -> Tensor:
    """Moves both upper corners of images inwards by a fraction of the width, as in a perspective view."""
    height, width = images.shape[-2:]
    corners = [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]
    inset = round(share * width)
    moved = [[inset, 0], [width - 1 - inset, 0], [width - 1, height - 1], [0, height - 1]]
    return transforms.perspective(images, corners, moved, fill=[-1.0])


def elastic(images: Tensor, share: float) -> Tensor:
    """Displaces pixels along sine waves whose amplitude is the fraction ``share`` of the side."""
    # Fixed phases and an amplitude relative to the side give the same alteration at every resolution.
    height, width = images.shape[-2:]
    y = torch.linspace(0.0, 1.0, height, device=images.device).view(height, 1).expand(height, width)
    x = torch.linspace(0.0, 1.0, width, device=images.device).view(1, width).expand(height, width)
    wave = torch.stack(
        [torch.sin(2 * math.pi * (1.7 * y + 0.6 * x + 0.1)), torch.sin(2 * math.pi * (1.3 * x - 0.8 * y + 0.4))], dim=-1
    )
    return transforms.elastic(images, 2.0 * share * wave.unsqueeze(0), fill=[-1.0])


def gamma(images: Tensor, exponent: float) -> Tensor:
    """Applies gamma correction: brightness, scaled to [0, 1], is raised to the power ``exponent``."""
    return ((images + 1.0) / 2.0) ** exponent * 2.0 - 1.0


def contrast(images: Tensor, factor: float) -> Tensor:
    """Multiplies the deviation of each pixel from the mean of its image by ``factor``."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * factor + mean


def noise(images: Tensor, deviation: float) -> Tensor:
    """Adds Gaussian noise of standard deviation ``deviation``, in units of [-1, 1], always from the same seed."""
    random = torch.Generator().manual_seed(0)
    return images + deviation * torch.randn(images.shape, generator=random).to(images)


def blur(images: Tensor, share: float) -> Tensor:
    """Applies a Gaussian blur whose standard deviation is the fraction ``share`` of the side."""
    sigma = share * images.shape[-1]
    return transforms.gaussian_blur(images, [2 * math.ceil(2.0 * sigma) + 1] * 2, [sigma, sigma])


def coarse(images: Tensor, factor: int) -> Tensor:
    """Reduces images by ``factor`` and enlarges them to their size again."""
    small = F.interpolate(images, scale_factor=1.0 / factor, mode="area")
    return F.interpolate(small, size=images.shape[-2:], mode="bilinear", align_corners=False)


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Encodes images of 1 or 3 channels as JPEG of ``quality`` (1 to 100) and decodes them."""
    pixels = ((images + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
    coded = torch.stack([decode_jpeg(encode_jpeg(image, quality)) for image in pixels])
    return coded.to(images) / 127.5 - 1.0


def occlude(images: Tensor, share: float) -> Tensor:
    """Covers a square, whose side is the fraction ``share`` of the image's, with black."""
    # On a chest X-ray the square covers part of one lung, as a device, a marker or a redaction would.
    height, width = images.shape[-2:]
    changed = images.clone()
    top, left = round(0.35 * height), round(0.15 * width)
    changed[..., top : top + round(share * height), left : left + round(share * width)] = -1.0
    return changed


def posterise(images: Tensor, levels: int) -> Tensor:
    """Quantises brightness to ``levels`` values."""
    return ((images + 1.0) / 2.0 * (levels - 1)).round() / (levels - 1) * 2.0 - 1.0
