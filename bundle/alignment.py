# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Correlation of two pictures after alignment: one may be shifted, scaled, rotated, mirrored or bent.

Three steps, from coarse to fine: the similarity transform is found by correlation of small images over all shifts (by
Fourier transform) for a list of scales, angles and mirroring; a smooth displacement field by local correlation of
windows within a few pixels, twice; and what is left is the correlation of the fine detail, cell by cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from bundle.figures import from_uint8

__all__ = ["SIDE", "TRANSFORMS", "Views", "aligned_correlation", "blurred", "inside_picture"]

#: Largest side in pixels at which images are compared.
SIDE = 128
# Reduction of the side, and standard deviations of the two Gaussians whose difference is the band, in pixels of an
# image of 128 px: for the similarity transform, for the displacements, and for their refinement and the detail.
COARSE, MIDDLE, FINE = (4, (2.0, 8.0)), (2, (1.0, 6.0)), (1, (1.0, 3.0))
# Cells along each side of an image.
CELLS = 8
# Share of an image's cells with content whose detail must correlate, and the least number of cells.
COVERAGE, LEAST_CELLS = 0.5, 16
# Grey values, in [-1, 1], up to which a pixel is as dark as the darkest one; side in pixels of an image of 128 px of a
# square of such pixels, which counts as outside of the picture; and distance from it up to which its rim reaches.
DARK, SQUARE, RIM = 0.08, 9, 8
# Largest displacements: of the whole image, as a share of its side, and of windows, in pixels of the steps' images.
SHIFT, REACH, REFINEMENT, REMAINDER = 0.16, 4, 2, 1
# Images whose displacements are refined, of those that are compared.
REFINED = 2
# Mean square below which a window is flat; grey values reach from -1 to 1.
FLAT = 1e-7


def _transforms(scales: tuple[float, ...], angles: tuple[float, ...], mirrored: tuple[float, ...]) -> Tensor:
    matrices = []
    for sign in mirrored:
        for scale in scales:
            for angle in angles:
                cos, sin = scale * math.cos(math.radians(angle)), scale * math.sin(math.radians(angle))
                matrices.append([[sign * cos, -sign * sin], [sin, cos]])
    return torch.tensor(matrices)


#: Linear parts of the similarity transforms that are tried, [T, 2, 2].
TRANSFORMS = _transforms((0.8, 0.89, 1.0, 1.12, 1.25), (-10.0, -5.0, 0.0, 5.0, 10.0), (1.0, -1.0))


@dataclass(frozen=True)
class Views:
    """Band-passed images at the three resolutions of the search.

    Attributes:
        coarse: [N, side / 4, side / 4], where the side is that of the images, at most 128, and a multiple of 32.
        middle: [N, side / 2, side / 2].
        fine: [N, side, side].
    """

    coarse: Tensor
    middle: Tensor
    fine: Tensor

    @classmethod
    def of(cls, pixels: Tensor) -> Views:
        """Prepares uint8 images [N, H, W] or [N, H, W, 3] whose sides are equal and at least 32."""
        views = [_views(block) for block in pixels.split(100)]
        return cls(*(torch.cat(parts) for parts in zip(*views, strict=True)))

    def __getitem__(self, index: Tensor) -> Views:
        return Views(self.coarse[index], self.middle[index], self.fine[index])


def _views(pixels: Tensor) -> list[Tensor]:
    images = from_uint8(pixels).mean(dim=1, keepdim=True)
    side, inside, views = images.shape[-1], inside_picture(images), []
    for reduction, sigmas in (COARSE, MIDDLE, FINE):
        low, high = (blurred(images, sigma * side / 128.0) for sigma in sigmas)
        size = min(SIDE, side // 32 * 32) // reduction
        views.append(F.interpolate((low - high) * inside, size, mode="bilinear", antialias=True)[:, 0])
    return views


def inside_picture(images: Tensor) -> Tensor:
    """Maps grey images [N, 1, H, W] in [-1, 1] to masks [N, 1, H, W]: 0 in large black areas and at their rim, else 1.

    The rim of a fundus photograph's round field is alike in all pictures of one camera and would outweigh the content.
    """
    scale = images.shape[-1] / 128.0
    square, around = (2 * round(size * scale / 2) + 1 for size in (SQUARE - 1, SQUARE - 1 + 2 * RIM))
    is_light = (images > images.amin(dim=(2, 3), keepdim=True) + DARK).to(images.dtype)
    return 1.0 - _highest_around(1.0 - _highest_around(is_light, square), around)


def _highest_around(images: Tensor, width: int) -> Tensor:
    rows = F.max_pool2d(images, (1, width), 1, (0, width // 2))
    return F.max_pool2d(rows, (width, 1), 1, (width // 2, 0))


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Applies a Gaussian blur of standard deviation ``sigma``, in pixels, to grey images [N, 1, H, W]."""
    # As products of matrices, since PyTorch's convolution of a single channel is several times slower on a CPU.
    down, across = (_gaussian(side, sigma) for side in images.shape[-2:])
    return down.T @ images @ across


@lru_cache(maxsize=32)
def _gaussian(side: int, sigma: float) -> Tensor:
    """Returns the matrix [side, side] whose rows are blurred unit impulses; edges are reflected."""
    reach = math.ceil(3.0 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    impulses = F.pad(torch.eye(side)[:, None], (reach, reach), mode="reflect")
    return F.conv1d(impulses, (kernel / kernel.sum()).view(1, 1, -1))[:, 0]


def aligned_correlation(images: Views, gallery: Views, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Aligns candidates of a gallery with each image and correlates their detail.

    Args:
        images: N images.
        gallery: M images of the same size.
        candidates: indices [N, K] of the gallery images that each image is compared with.

    Returns:
        The correlation [N] that half of the image's cells with content reach with the best candidate, and the index [N]
        of this candidate in the gallery.
    """
    values, indices = torch.empty(len(candidates)), torch.empty(len(candidates), dtype=torch.int64)
    for number, chosen in enumerate(candidates):
        found = _best(images[torch.tensor([number])], gallery[chosen])
        values[number], indices[number] = found[0], chosen[found[1]]
    return values, indices


def _best(image: Views, candidates: Views) -> tuple[float, int]:
    """Returns the correlation of one image with the best of some candidates, and which one this is."""
    linear, shift = _similarity(image.coarse, candidates.coarse)
    moved = _moved(candidates.middle, linear, shift)
    correlation, field = _displacements(image.middle, moved, REACH, 2 * _cell(moved))
    kept = correlation.mean(dim=(1, 2)).topk(min(REFINED, len(correlation))).indices
    linear, shift, field, fine = linear[kept], shift[kept], field[kept], candidates.fine[kept]
    moved = _moved(fine, linear, shift, [field])
    finer = _displacements(image.fine, moved, REFINEMENT, 3 * _cell(moved) // 2, CELLS * 2)[1]
    moved = _moved(fine, linear, shift, [field, finer])
    cells = _window_correlation(image.fine, moved, REMAINDER, _cell(moved), CELLS).amax(dim=1).flatten(1)
    n_cells = int((F.avg_pool2d(image.fine.square()[None], _cell(moved)) >= FLAT).sum())
    wanted = max(LEAST_CELLS, round(COVERAGE * n_cells))
    value, best = cells.sort(dim=1, descending=True).values[:, wanted - 1].max(dim=0)
    return float(value), int(kept[best])


def _cell(images: Tensor) -> int:
    return images.shape[-1] // CELLS


def _similarity(image: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the transform from coordinates of the image [1, S, S] to those of each candidate [K, S, S].

    Both are in units in which the image reaches from -1 to 1; the result is a linear part [K, 2, 2] and a shift [K, 2].
    """
    side, n = image.shape[-1], len(TRANSFORMS)
    grid = F.affine_grid(torch.cat([TRANSFORMS, torch.zeros(n, 2, 1)], dim=2), [n, 1, side, side], align_corners=False)
    variants = F.grid_sample(image.expand(n, 1, -1, -1), grid, align_corners=False)[:, 0]
    spectra = [torch.fft.rfft2(_standardised(views)) for views in (candidates, variants)]
    correlation = torch.fft.irfft2(spectra[0][:, None] * spectra[1].conj(), s=(side, side))
    most = max(1, round(SHIFT * side))
    width = 2 * most + 1
    near = correlation.roll((most, most), (2, 3))[..., :width, :width]
    place = near.flatten(1).argmax(dim=1)
    down, right = place % width**2 // width - most, place % width - most
    linear = torch.linalg.inv(TRANSFORMS[place // width**2])
    return linear, torch.stack([right, down], dim=1) * (2.0 / side)


def _standardised(images: Tensor) -> Tensor:
    centred = images - images.mean(dim=(1, 2), keepdim=True)
    return centred / centred.norm(dim=(1, 2), keepdim=True).clamp_min(1e-6)


def _moved(images: Tensor, linear: Tensor, shift: Tensor, fields: list[Tensor] | None = None) -> Tensor:
    """Transforms images [K, S, S] after displacing by the sum of some fields [K, 2, c, c], enlarged to the images."""
    k, side = len(images), images.shape[-1]
    at = F.affine_grid(torch.eye(2, 3)[None], [1, 1, side, side], align_corners=False).permute(0, 3, 1, 2)
    for field in fields or []:
        at = at + F.interpolate(field, size=side, mode="bilinear", align_corners=False)
    grid = torch.einsum("kij,kjyx->kyxi", linear, at.expand(k, -1, -1, -1)) + shift[:, None, None]
    return F.grid_sample(images[:, None], grid, align_corners=False)[:, 0]


def _displacements(
    image: Tensor, candidates: Tensor, reach: int, window: int, cells: int = CELLS
) -> tuple[Tensor, Tensor]:
    """Finds the displacements at which windows of the candidates correlate best, neighbours taken together.

    Returns:
        The correlation [K, cells, cells], and the smoothed displacements [K, 2, cells, cells] in the units of
        `_similarity`, interpolated between pixels.
    """
    width = 2 * reach + 1
    maps = _window_correlation(image, candidates, reach, window, cells)
    maps = F.avg_pool2d(maps, 3, 1, 1, count_include_pad=False)
    value, place = maps.max(dim=1)
    down, right = place // width, place % width
    parts = []
    for at, stride in ((right, 1), (down, width)):
        is_inside = (at > 0) & (at < width - 1)
        before, after = (
            maps.gather(1, torch.where(is_inside, place + step, place)[:, None])[:, 0] for step in (-stride, stride)
        )
        curvature = (2.0 * value - before - after).clamp_min(1e-6)
        parts.append(at - reach + (0.5 * (after - before) / curvature).clamp(-0.5, 0.5))
    field = torch.stack(parts, dim=1) * (2.0 / image.shape[-1])
    return value, F.avg_pool2d(field, 3, 1, 1, count_include_pad=False)


def _window_correlation(image: Tensor, candidates: Tensor, reach: int, window: int, cells: int) -> Tensor:
    """Correlates windows around the centres of cells with those of displaced candidates.

    Args:
        image: [1, S, S].
        candidates: [K, S, S].
        reach: largest displacement in pixels; all (2 reach + 1)^2 up to it are tried.
        window: side of a window in pixels.
        cells: number of windows along each side.

    Returns:
        Correlations [K, (2 reach + 1)^2, cells, cells]; 0 where a window is flat.
    """
    k, side = len(candidates), image.shape[-1]
    stride, width = side // cells, 2 * reach + 1
    margin = (window - stride) // 2
    padded = F.pad(candidates, (reach,) * 4)
    displaced = padded.unfold(1, side, 1).unfold(2, side, 1).reshape(k, width**2, side, side)
    product = _window_means(displaced * image, window, stride, margin)
    # Of the squares, one image of window means holds those of all displacements.
    means = _window_means(padded.square()[:, None], window, 1, margin)[:, 0]
    size = stride * (cells - 1) + 1
    squares = means.unfold(1, size, 1).unfold(2, size, 1)[:, :width, :width, ::stride, ::stride].flatten(1, 2)
    own = _window_means(image.square()[None], window, stride, margin)
    is_flat = (squares < FLAT) | (own < FLAT)
    return torch.where(is_flat, 0.0, product / (squares.clamp_min(FLAT) * own.clamp_min(FLAT)).sqrt())


def _window_means(images: Tensor, window: int, stride: int, margin: int) -> Tensor:
    """Returns the means over square windows, zeros around the images included, of images [..., S, S]."""
    # As products of matrices, since PyTorch's pooling of single channels is several times slower on a CPU.
    means = _means(images.shape[-1], window, stride, margin)
    return means.T @ images @ means


@lru_cache(maxsize=32)
def _means(side: int, window: int, stride: int, margin: int) -> Tensor:
    """Returns the matrix [side, windows] that takes the means over the windows of a row."""
    return F.avg_pool1d(torch.eye(side)[:, None], window, stride, margin)[:, 0]
