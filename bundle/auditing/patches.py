# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Local copies: a part of a training image inside a synthetic one, or mixed into it.

Both images are divided into cells, whose fine detail is correlated cell by cell. A pasted quarter of a training image
correlates almost perfectly in neighbouring cells, a blend of two images less so in all of them; two different people do
neither. The networks of the audit compare whole images and miss both.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from bundle.figures import from_uint8
from bundle.steps import Tensors

__all__ = ["LOCAL", "local_correlation"]

#: What is sought: a part of an image, by the mean over a square of cells, and a whole image mixed with another one,
#: by the correlation that most cells reach.
LOCAL = ("part", "whole")
# Cells along each side of an image and of the square, and share of the cells that counts as most.
CELLS, SQUARE, MOST = 8, 3, 0.8
# Standard deviations, in pixels of an image of 128 px, of the Gaussians whose difference is the band. Coarser detail is
# more alike in different people, and the host's would reach further into what was pasted.
BAND = (0.7, 2.0)
# Root mean square of a cell's content below which the cell is flat; grey values reach from -1 to 1.
FLAT = 1e-3
# Images that are compared at once, and images of the gallery that they are compared with.
ROWS, COLUMNS = 16, 1000


def _descriptors(pixels: Tensor) -> Tensor:
    """Describes the cells of images.

    Args:
        pixels: uint8 [N, H, W] or [N, H, W, 3]; the side is a multiple of 8.

    Returns:
        Unit vectors [cells, N, H W / cells]; zero where a cell is flat.
    """
    images = from_uint8(pixels).mean(dim=1, keepdim=True)
    low, high = (_blurred(images, sigma * images.shape[-1] / 128.0) for sigma in BAND)
    size = images.shape[-1] // CELLS
    cells = F.unfold(low - high, size, stride=size).permute(2, 0, 1)
    cells = cells - cells.mean(dim=2, keepdim=True)
    norm = cells.norm(dim=2, keepdim=True)
    return torch.where(norm > FLAT * size, cells / norm.clamp_min(FLAT * size), 0.0)


def _blurred(images: Tensor, sigma: float) -> Tensor:
    width = 2 * round(3.0 * sigma) + 1
    return gaussian_blur(images, [width, width], [sigma, sigma])


def local_correlation(pixels: Tensor, gallery: Tensor) -> Tensors:
    """Finds for each image the gallery image with which its cells correlate best.

    Args:
        pixels: uint8 images [N, H, W] or [N, H, W, 3].
        gallery: uint8 images of the same size, [M, ...].

    Returns:
        For each of `LOCAL`, under its name, the correlation [N] with the best gallery image, and under ``<name>_index``
        the index [N] of that image.
    """
    found: Tensors = {}
    for name in LOCAL:
        found[name] = torch.full((len(pixels),), -2.0)
        found[f"{name}_index"] = torch.zeros(len(pixels), dtype=torch.int64)
    for start in range(0, len(gallery), COLUMNS):
        columns = _descriptors(gallery[start : start + COLUMNS]).transpose(1, 2)
        for first in range(0, len(pixels), ROWS):
            rows = slice(first, first + ROWS)
            cells = torch.bmm(_descriptors(pixels[rows]), columns)
            squares = F.avg_pool2d(cells.unflatten(0, (CELLS, CELLS)).permute(2, 3, 0, 1), SQUARE, 1)
            correlations = (
                squares.amax(dim=(2, 3)),
                cells.kthvalue(len(cells) + 1 - int(MOST * len(cells)), dim=0).values,
            )
            for name, correlation in zip(LOCAL, correlations, strict=True):
                value, index = correlation.max(dim=1)
                best, where = found[name], found[f"{name}_index"]
                is_better = value > best[rows]
                best[rows], where[rows] = (
                    torch.where(is_better, value, best[rows]),
                    torch.where(is_better, index + start, where[rows]),
                )
    return found
