# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Finds the circular field of view of a fundus photograph, checks it, and crops the image to it.

A fundus camera shows the retina through a circular aperture on a black background. The size of the circle within the
frame, and how much of it the frame cuts off, depend on the camera only.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, label, median_filter

from bundle.data.readers import ReadError

__all__ = ["Circle", "CropRetinad", "Retina", "check_retina", "find_retina"]

# Longer side, in pixels, to which images are reduced before the circle is searched.
_SIDE = 256
# Threshold of the brightest channel above which a pixel is not black; JPEG noise and stray light are below.
_BLACK = 0.04
# Smallest share of the frame that the retina covers, smallest `Retina.filled`, smallest `Retina.shown` and largest
# `Retina.off` of a usable photograph.
_LEAST_AREA, _LEAST_FILLED, _LEAST_SHOWN, _MOST_OFF = 0.1, 0.95, 0.6, 0.03
# Smallest and largest mean luma within the circle, 0 (black) to 1 (white).
_DARK, _BRIGHT = 0.06, 0.85
# Share of the radius that is kept, since the rim of the aperture is blurred and reflects light.
_KEPT = 0.985


class Circle(NamedTuple):
    """A circle in an image, in pixels; the image's upper left corner is (0, 0)."""

    x: float
    y: float
    radius: float

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """Returns the mask [height, width] of the pixels within the circle."""
        rows, columns = np.ogrid[:height, :width]
        return np.asarray((columns + 0.5 - self.x) ** 2 + (rows + 0.5 - self.y) ** 2 <= self.radius**2)

    def times(self, factor: float) -> Circle:
        """Returns the circle scaled by a factor, together with its image."""
        return Circle(*(factor * value for value in self))


class Retina(NamedTuple):
    """The field of view of one photograph.

    Attributes:
        circle: circle of the field of view, in pixels; it may extend beyond the frame.
        off: median distance of the region's edge from the circle, in radii.
        filled: intersection over union of the region that is not black and the part of the circle within the frame. The
            frame excludes black rows and columns that were padded.
        shown: share of the circle that is within the frame.
        luma: mean luma within the circle and the frame, 0 (black) to 1 (white).
    """

    circle: Circle
    off: float
    filled: float
    shown: float
    luma: float


def find_retina(image: NDArray[np.float32]) -> Retina | None:
    """Finds the circular field of view of a fundus photograph.

    The largest region that is not black, with its holes filled, is taken as the field of view. A circle is fitted to
    its edge, except where the frame cuts it: by least squares, repeated without outliers, such as the notch by which
    many cameras mark the upper side.

    Args:
        image: float32 [C, H, W] in [0, 1].

    Returns:
        The field of view; None where the image is black or too few points of the edge are visible.
    """
    height, width = image.shape[1:]
    step = max(1, round(max(height, width) / _SIDE))
    small = image[:, : height // step * step, : width // step * step]
    small = small.reshape(len(image), height // step, step, width // step, step).mean(axis=(2, 4))
    lit = median_filter(small.max(axis=0), 3) > _BLACK
    parts, n_parts = label(lit)
    if n_parts == 0:
        return None
    largest = binary_fill_holes(parts == 1 + np.bincount(parts[parts > 0] - 1).argmax())
    points = _edge(largest)
    if len(points) < 0.05 * sum(largest.shape):
        return None
    circle, off = _fit_circle(points)
    inside = circle.mask(*largest.shape) & largest.any(axis=1)[:, None] & largest.any(axis=0)
    if not inside.any():
        return None
    luma = np.tensordot((0.299, 0.587, 0.114), small, 1) if len(small) == 3 else small[0]
    return Retina(
        circle.times(step),
        off,
        filled=float((largest & inside).sum() / (largest | inside).sum()),
        shown=float(min(1.0, inside.sum() / (np.pi * circle.radius**2))),
        luma=float(luma[inside].mean()),
    )


def _edge(region: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Returns the outermost pixels of a region by row and by column, [N, 2] as (x, y).

    Pixels near the region's extreme rows and columns are left out, since there the frame may have cut the circle.
    """
    points = []
    for turned, axes in ((region, [0, 1]), (region.T, [1, 0])):
        lines = np.flatnonzero(turned.any(axis=1))
        first = turned[lines].argmax(axis=1)
        last = turned.shape[1] - 1 - turned[lines, ::-1].argmax(axis=1)
        points += [np.stack([ends, lines], axis=1)[:, axes] for ends in (first, last)]
    found = np.concatenate(points)
    low, high = found.min(axis=0), found.max(axis=0)
    cut = 0.015 * (high - low).max()
    free = ((found > low + cut) & (found < high - cut)).all(axis=1)
    return found[free].astype(np.float64) + 0.5


def _fit_circle(points: NDArray[np.float64]) -> tuple[Circle, float]:
    """Fits a circle to points (x, y) without outliers; returns it and the points' median distance from it in radii."""
    kept = np.ones(len(points), bool)
    for _ in range(10):
        x, y = points[kept].T
        system = np.stack([2.0 * x, 2.0 * y, np.ones_like(x)], axis=1)
        (a, b, c), *_ = np.linalg.lstsq(system, x**2 + y**2, rcond=None)
        radius = float(np.sqrt(max(c + a**2 + b**2, 1e-6)))
        off = np.abs(np.hypot(points[:, 0] - a, points[:, 1] - b) - radius) / radius
        now = off <= max(3.0 * float(np.median(off)), 0.01)
        if (now == kept).all():
            break
        kept = now
    return Circle(float(a), float(b), radius), float(np.median(off))


def check_retina(image: NDArray[np.float32]) -> None:
    """Refuses an image [C, H, W] in [0, 1] that shows no usable retina.

    Raises:
        ReadError: the image has no circular field of view on black, the field of view is too small or cut off too much
            by the frame, or it is too dark or too bright.
    """
    retina = find_retina(image)
    whole = "Give the photograph as the camera made it"
    if retina is None or retina.off > _MOST_OFF or retina.filled < _LEAST_FILLED:
        raise ReadError("no retina", "shows no round field of view on black", whole)
    if retina.shown < _LEAST_SHOWN:
        raise ReadError("cut off", f"the frame shows only {retina.shown:.0%} of the round field of view", whole)
    if retina.shown * np.pi * retina.circle.radius**2 < _LEAST_AREA * image.shape[1] * image.shape[2]:
        raise ReadError("no retina", "the round field of view is a spot in the frame", "Crop it, or remove the image")
    if not _DARK <= retina.luma <= _BRIGHT:
        kind = "too dark" if retina.luma < _DARK else "too bright"
        raise ReadError(kind, f"the retina's mean brightness is {retina.luma:.2f} of 1", "Remove it")


class CropRetinad(MapTransform):
    """Crops images [C, H, W] in [0, 1] to the box around the retina's circle and makes pixels outside the circle black.

    An image without a circle is not changed: of real images, :func:`check_retina` refuses it.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns the dictionary with cropped images; values are in [0, 1] before and after."""
        result = dict(data)
        for key in self.key_iterator(result):
            image: torch.Tensor = result[key]
            retina = find_retina(image.numpy())
            if retina is None or retina.off > _MOST_OFF:
                continue
            height, width = image.shape[1:]
            x, y, radius = retina.circle._replace(radius=_KEPT * retina.circle.radius)
            cut = image * torch.from_numpy(Circle(x, y, radius).mask(height, width))
            left, right = max(0, round(x - radius)), min(width, round(x + radius))
            top, bottom = max(0, round(y - radius)), min(height, round(y + radius))
            result[key] = cut[:, top:bottom, left:right]
        return result
