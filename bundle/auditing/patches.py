# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Local copies: a part of a training image inside a synthetic one, or mixed into it.

Both images are divided into cells, whose fine detail is correlated cell by cell. A pasted quarter of a training image
correlates almost perfectly in neighbouring cells, a blend of two images less so in all of them; two different people do
neither. The networks of the audit compare whole images and miss both.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bundle.alignment import blurred, inside_picture
from bundle.figures import from_uint8
from bundle.steps import Tensors

__all__ = ["LOCAL", "describe_cells", "local_correlation"]

#: What is sought: a part of an image, by the mean over a square of cells, and a whole image mixed with another one,
#: by the correlation that most cells reach.
LOCAL = ("part", "whole")
# Cells along each side of an image and of the square, and share of the cells that counts as most.
CELLS, SQUARE, MOST = 8, 3, 0.8
# Standard deviations, in pixels of an image of 128 px or less, of the Gaussians whose difference is the band. Coarser
# detail is more alike in different people, and the host's would reach further into what was pasted.
BAND = (0.5, 1.5)
# Channel of colour images: green, in which the vessels of a retina stand out most.
GREEN = 1
# Root mean square of a cell's content below which the cell is flat; grey values reach from -1 to 1.
FLAT = 1e-3
# Images that are described at once, that are compared at once, and of the gallery that they are compared with.
BLOCK, ROWS, COLUMNS = 100, 16, 1000


def describe_cells(pixels: Tensor) -> Tensor:
    """Describes the cells of images, large black areas and their rims left out.

    Args:
        pixels: uint8 [N, H, W] or [N, H, W, 3]; the side is a multiple of 8.

    Returns:
        Unit vectors [cells, N, H W / cells], fp16; zero where a cell is flat.
    """
    return torch.cat([_described(block) for block in pixels.split(BLOCK)], dim=1)


def _described(pixels: Tensor) -> Tensor:
    images = from_uint8(pixels)
    channel = images[:, GREEN : GREEN + 1] if images.shape[1] > 1 else images
    low, high = (blurred(channel, sigma * max(1.0, images.shape[-1] / 128.0)) for sigma in BAND)
    detail = (low - high) * inside_picture(images.mean(dim=1, keepdim=True))
    size = images.shape[-1] // CELLS
    cells = F.unfold(detail, size, stride=size).permute(2, 0, 1)
    cells = cells - cells.mean(dim=2, keepdim=True)
    norm = cells.norm(dim=2, keepdim=True)
    return torch.where(norm > FLAT * size, cells / norm.clamp_min(FLAT * size), 0.0).half()


def local_correlation(pixels: Tensor, gallery: Tensor) -> Tensors:
    """Finds for each image the gallery image with which its cells correlate best.

    Args:
        pixels: uint8 images [N, H, W] or [N, H, W, 3].
        gallery: cells of M images of the same size, from `describe_cells`.

    Returns:
        For each of `LOCAL`, under its name, the correlation [N] with the best gallery image, and under ``<name>_index``
        the index [N] of that image.
    """
    found: dict[str, list[Tensor]] = {key: [] for name in LOCAL for key in (name, f"{name}_index")}
    for block in pixels.split(ROWS):
        own = describe_cells(block).float()
        n_cells = own.any(dim=2).sum(dim=0)
        compared: dict[str, list[Tensor]] = {name: [] for name in LOCAL}
        for columns in gallery.split(COLUMNS, dim=1):
            cells = torch.bmm(own, columns.float().transpose(1, 2))
            for name, correlation in zip(LOCAL, (_of_squares(cells), _reached(cells, n_cells)), strict=True):
                compared[name].append(correlation)
        for name, parts in compared.items():
            value, index = torch.cat(parts, dim=1).max(dim=1)
            found[name].append(value)
            found[f"{name}_index"].append(index)
    return {key: torch.cat(parts) for key, parts in found.items()}


def _of_squares(cells: Tensor) -> Tensor:
    """Returns the highest mean [N, M] over a square of cells, from correlations [cells, N, M]."""
    sums = cells.unflatten(0, (CELLS, CELLS))
    for dim in (0, 1):
        sums = torch.stack([sums.narrow(dim, start, CELLS - SQUARE + 1) for start in range(SQUARE)]).sum(dim=0)
    return sums.amax(dim=(0, 1)) / SQUARE**2


def _reached(cells: Tensor, n_cells: Tensor) -> Tensor:
    """Returns the correlation [N, M] that `MOST` of each image's cells with content reach.

    Args:
        cells: correlations [cells, N, M].
        n_cells: number of cells of each image that are not flat, [N].
    """
    rank = len(cells) - (MOST * n_cells).long().clamp_min(1)
    values = cells.permute(1, 2, 0).contiguous().numpy()
    # NumPy's partition, because PyTorch's sort takes longer than everything else here together.
    ordered = torch.from_numpy(np.partition(values, rank.unique().tolist(), axis=2))
    return ordered.gather(2, rank.view(-1, 1, 1).expand(-1, ordered.shape[1], 1))[..., 0]
