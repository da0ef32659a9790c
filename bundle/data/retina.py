# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The round field of view of a fundus photograph: found, judged, and cut out.

A fundus camera shows the retina through a circular aperture on black. How large the circle is within the frame, and how
much of it the frame cuts off, depends on the camera alone.
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

# Longer side at which the circle is sought.
_SIDE = 256
# The brightest channel of what is not black: JPEG noise and stray light around the aperture stay below.
_BLACK = 0.04
# Shares: of the frame that a retina covers at least; of the circle's part within the frame that is lit, and nothing
# outside; of the circle that the frame shows; of the radius by which half of the edge may miss the circle.
_LEAST_AREA, _LEAST_FILLED, _LEAST_SHOWN, _MOST_OFF = 0.1, 0.95, 0.6, 0.03
# Mean luma within the circle, 0 (black) to 1 (white).
_DARK, _BRIGHT = 0.06, 0.85
# The rim glows and is blurred: share of the radius that is kept.
_KEPT = 0.985


class Circle(NamedTuple):
    """A circle in an image; its upper left corner is (0, 0)."""

    x: float
    y: float
    radius: float

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """Returns which pixels of a frame, [height, width], lie within."""
        rows, columns = np.ogrid[:height, :width]
        return np.asarray((columns + 0.5 - self.x) ** 2 + (rows + 0.5 - self.y) ** 2 <= self.radius**2)

    def times(self, factor: float) -> Circle:
        """Returns the same circle of an image that is so many times as large."""
        return Circle(*(factor * value for value in self))


class Retina(NamedTuple):
    """The field of view of one photograph.

    Attributes:
        circle: in pixels; larger than half the frame where the frame cuts it on all sides.
        off: median distance of the edge from the circle, in radii.
        filled: what is not black, and the circle's part within the frame: their intersection over their union. The
            frame is what a camera showed; black that was padded since does not count.
        shown: share of the circle that lies within the frame.
        luma: mean luma within it, 0 to 1.
    """

    circle: Circle
    off: float
    filled: float
    shown: float
    luma: float


def find_retina(image: NDArray[np.float32]) -> Retina | None:
    """Finds the circle of a fundus photograph.

    What is not black, its largest part with the holes filled, is taken for the field of view; a circle is fitted to
    that part of its edge which is not the frame's (least squares, then again without the points that miss it, so that
    the notch by which many cameras mark the upper side has no say).

    Args:
        image: float32 [C, H, W] in [0, 1].

    Returns:
        The field of view; None where nothing is there, or no edge of it.
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
    """Returns the outermost pixels of a region by row and by column, [N, 2] as (x, y), where its edge is not cut.

    A frame, be it the image's own or one that was padded since, cuts a circle along its extreme rows and columns: what
    lies on those is left out.
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
    """Returns the circle next to points (x, y) and their median distance from it in radii; outliers have no say."""
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
    """Refuses an image [C, H, W] in [0, 1] that does not show a retina that can be used.

    Raises:
        ReadError: there is no round field of view on black; or the frame cuts off too much of it; or it is too dark or
            too bright.
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
    """Cuts images [C, H, W] in [0, 1] to the circle of the retina; what is outside it becomes black.

    The frame of the result is the circle's part within the old one. An image without a circle stays as it is: the check
    of the data has its word on it, and a synthetic one has a circle.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns the dictionary with the images cut out; values are in [0, 1] before and after."""
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
