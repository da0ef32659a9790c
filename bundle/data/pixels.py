# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Pixel operations that all formats share: intensity scaling, conversion of colour, square pixels, and checks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bundle.data.formats import ReadError, check_size

__all__ = [
    "GREY",
    "MAX_ASPECT",
    "MIN_CONTRAST",
    "ROBUST_PERCENTILES",
    "SQUARE",
    "check_pixels",
    "eight_bits",
    "full_scale",
    "is_coloured",
    "one_channel",
    "percentiles",
    "robust_scale",
    "square_pixels",
]

#: Percentiles of an image's own values that become black and white, where its full scale is not known: images of more
#: than 8 bits (often 12 bits in a 16-bit file). Markers, dead pixels and padding are in the tails.
ROBUST_PERCENTILES = (0.5, 99.5)

#: Smallest robust range of an image, as a share of the full scale, below which it is blank.
MIN_CONTRAST = 0.02

#: Largest mean range of a pixel's channels, as a share of the full scale, of a grey image. It is 0 for grey saved as
#: RGB and little more for a tinted film; the palest of 1270 fundus photographs, with its black background, has 0.028.
GREY = 0.015

#: Largest relative difference of a pixel's height and width that is ignored, as rounding in headers causes it.
SQUARE = 0.01

#: Largest ratio of a pixel's longer to its shorter side; beyond it, the header is taken to be wrong.
MAX_ASPECT = 10.0

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601


def full_scale(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Divides 8-bit pixels by 255."""
    return np.divide(pixels, 255.0, dtype=np.float32)


def _every_nth(length: int) -> slice:
    """Returns a slice that keeps about a quarter of a million of so many values."""
    # An odd step rarely divides the width of the image; one that does would sample only some of the columns.
    return slice(None, None, (length // 2**18) | 1)


def percentiles(values: NDArray[Any]) -> tuple[float, float]:
    """Returns the :data:`ROBUST_PERCENTILES` of the values, subsampled to about a quarter of a million."""
    flat = values.reshape(-1)
    low, high = np.percentile(flat[_every_nth(flat.size)], ROBUST_PERCENTILES)
    return float(low), float(high)


def robust_scale(values: NDArray[np.floating[Any]], mask: NDArray[np.bool_] | None = None) -> NDArray[Any]:
    """Maps the :data:`ROBUST_PERCENTILES` of the values (of those in the mask, if given) to 0 and 1, without clipping.

    All channels of a colour image share one scale, which preserves hues.

    Raises:
        ReadError: the image has NaN or infinite values, or almost all values are equal.
    """
    if not np.isfinite(values).all():
        raise ReadError("not finite", "holds NaN or infinite values", "Replace them and save the image again")
    inside = values if mask is None or not mask.any() else values[mask]
    low, high = percentiles(inside)
    if high <= low:
        raise ReadError("blank", f"all but a few pixels have the value {low:g}", "Remove it")
    return (values - low) / (high - low)


def is_coloured(pixels: NDArray[Any]) -> bool:
    """Returns whether an image [H, W, 3], uint8 or float in [0, 1], shows colour; large images are subsampled."""
    flat = pixels.reshape(-1, 3)
    spread = np.ptp(flat[_every_nth(len(flat))], axis=1).mean()
    return bool(spread > (255 * GREY if pixels.dtype == np.uint8 else GREY))


def _refuse_colour(pixels: NDArray[Any]) -> None:
    if is_coloured(pixels):
        cure = "Convert it to grey, or name the modality that these images are of"
        raise ReadError("in colour", "is in colour, where the modality has one channel", cure)


def eight_bits(image: Image.Image, channels: int, strict: bool) -> NDArray[np.float32]:
    """Converts an 8-bit image to [H, W] (1 channel) or [H, W, 3] (3) in [0, 1]; transparent parts become black.

    Raises:
        ReadError: `strict` is set, one channel is requested and the image is in colour.
    """
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "black")
        image = Image.alpha_composite(opaque, image.convert("RGBA"))
    if strict and channels == 1 and image.mode != "L":
        _refuse_colour(np.asarray(image.convert("RGB")))
    return full_scale(np.asarray(image.convert("L" if channels == 1 else "RGB")))


def one_channel(pixels: NDArray[Any], channels: int, strict: bool) -> NDArray[Any]:
    """Converts a colour image [H, W, 3] of more than 8 bits, scaled to [0, 1], to luma [H, W] if `channels` is 1.

    Raises:
        ReadError: `strict` is set, one channel is requested and the image is in colour.
    """
    if channels == 3:
        return pixels
    pixels = np.clip(pixels, 0.0, 1.0)
    if strict:
        _refuse_colour(pixels)
    return pixels @ _LUMA


def square_pixels(image: NDArray[Any], height: float, width: float, source: str) -> NDArray[Any]:
    """Resamples an image with non-square pixels to square ones: bilinear, antialiased.

    The physically longer side of the image keeps its number of pixels. The image is returned unchanged where the sides
    of a pixel differ by at most :data:`SQUARE`.

    Args:
        image: image [H, W] or [H, W, 3]; values are clipped to [0, 1] if it is resampled.
        height: height of one pixel, in any unit.
        width: width of one pixel, in the same unit.
        source: name of the tag or field that gives the size, for the message.

    Raises:
        ReadError: the size of a pixel is implausible, or the resampled image would be too large.
    """
    if height == width:
        return image
    if not (np.isfinite(height) and np.isfinite(width)) or min(height, width) <= 0:
        ratio = np.inf
    else:
        ratio = max(height / width, width / height)
    if ratio > MAX_ASPECT:
        message = f"{source} says that a pixel is {height:g} high and {width:g} wide"
        raise ReadError("wrong tag", message, f"Correct or delete {source}")
    if ratio <= 1 + SQUARE:
        return image
    rows, columns = image.shape[:2]
    pitch = height if rows * height >= columns * width else width
    size = max(1, round(columns * width / pitch)), max(1, round(rows * height / pitch))
    check_size(*size, 4 * image[0, 0].size)
    planes = np.clip(image, 0.0, 1.0).astype(np.float32).reshape(rows, columns, -1)
    resized = [
        np.asarray(Image.fromarray(np.ascontiguousarray(planes[..., i])).resize(size, Image.Resampling.BILINEAR))
        for i in range(planes.shape[2])
    ]
    return np.stack(resized, axis=-1) if image.ndim == 3 else resized[0]


def check_pixels(image: NDArray[Any], suspect: str = "") -> None:
    """Refuses decoded images that are blank or not finite.

    Args:
        image: decoded image; black is 0 and white is 1, not yet clipped.
        suspect: tags of the file that are the probable cause of a problem, such as those of a window; "" for none.

    Raises:
        ReadError: the image has NaN or infinite values, or almost all values are nearly equal.
    """
    cure = f"Correct or delete {suspect}" if suspect else ""
    if not np.isfinite(image).all():
        after = f" after {suspect}" if suspect else ""
        raise ReadError(
            "not finite", f"holds NaN or infinite values{after}", cure or "Replace them and save the image again"
        )
    low, high = np.clip(percentiles(image), 0.0, 1.0)
    if high - low < MIN_CONTRAST:
        after = f" after {suspect}" if suspect else ""
        raise ReadError("blank", f"all but a few pixels are one grey ({high:.2f} of 1){after}", cure or "Remove it")
