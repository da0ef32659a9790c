# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""What pixels of every format go through: scale, colour, square pixels, and the check of what came out."""

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

#: Images without a known full scale (more than 8 bits: 12 bits often sit in a 16-bit file) run from the first of these
#: percentiles of their own values (black) to the second (white); the tails hold markers, dead pixels and padding.
ROBUST_PERCENTILES = (0.5, 99.5)

#: An image whose robust range is narrower than this share of the full scale is blank.
MIN_CONTRAST = 0.02

#: Mean range of the channels, as a share of the full scale, up to which an image shows no colour. Grey saved in colour
#: has 0, a tinted film little more; the palest of 1270 fundus photographs, black surround included, has 0.028.
GREY = 0.015

#: Relative difference of a pixel's height and width up to which it counts as square: less than rounding and measuring
#: leave in headers, and no network sees it.
SQUARE = 0.01

#: Ratio of a pixel's longer to its shorter side beyond which the header is taken to be wrong.
MAX_ASPECT = 10.0

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601


def full_scale(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Divides 8-bit pixels by 255."""
    return np.divide(pixels, 255.0, dtype=np.float32)


def _every_nth(length: int) -> slice:
    """Returns what leaves about a quarter of a million of so many values."""
    # The step is odd, so that it does not fall in with the width of the image, which seldom is.
    return slice(None, None, (length // 2**18) | 1)


def percentiles(values: NDArray[Any]) -> tuple[float, float]:
    """Returns :data:`ROBUST_PERCENTILES`, of every n-th value where there are more than a quarter of a million."""
    flat = values.reshape(-1)
    low, high = np.percentile(flat[_every_nth(flat.size)], ROBUST_PERCENTILES)
    return float(low), float(high)


def robust_scale(values: NDArray[np.floating[Any]], mask: NDArray[np.bool_] | None = None) -> NDArray[Any]:
    """Maps :data:`ROBUST_PERCENTILES` of the values (those under the mask) to 0 and 1; the caller clips.

    The channels of a colour image share one scale, which keeps its hues.

    Raises:
        ReadError: NaN or infinite values, or a single value nearly everywhere.
    """
    if not np.isfinite(values).all():
        raise ReadError("not finite", "holds NaN or infinite values", "Replace them and save the image again")
    inside = values if mask is None or not mask.any() else values[mask]
    low, high = percentiles(inside)
    if high <= low:
        raise ReadError("blank", f"all but a few pixels have the value {low:g}", "Remove it")
    return (values - low) / (high - low)


def is_coloured(pixels: NDArray[Any]) -> bool:
    """Whether an image [H, W, 3], uint8 or float in [0, 1], shows colour; every n-th pixel of a large one is asked."""
    flat = pixels.reshape(-1, 3)
    spread = np.ptp(flat[_every_nth(len(flat))], axis=1).mean()
    return bool(spread > (255 * GREY if pixels.dtype == np.uint8 else GREY))


def _refuse_colour(pixels: NDArray[Any]) -> None:
    if is_coloured(pixels):
        cure = "Convert it to grey, or name the modality that these images are of"
        raise ReadError("in colour", "is in colour, where the modality has one channel", cure)


def eight_bits(image: Image.Image, channels: int, strict: bool) -> NDArray[np.float32]:
    """Returns an 8-bit picture as [H, W] or [H, W, 3] in [0, 1]; transparent parts are black.

    Raises:
        ReadError: `strict`, and colour where one channel is wanted.
    """
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "black")
        image = Image.alpha_composite(opaque, image.convert("RGBA"))
    if strict and channels == 1 and image.mode != "L":
        _refuse_colour(np.asarray(image.convert("RGB")))
    return full_scale(np.asarray(image.convert("L" if channels == 1 else "RGB")))


def one_channel(pixels: NDArray[Any], channels: int, strict: bool) -> NDArray[Any]:
    """Returns a deep colour image, [H, W, 3] in [0, 1], as it is or as luma [H, W], whatever `channels` asks for.

    Raises:
        ReadError: `strict`, and colour where one channel is wanted.
    """
    if channels == 3:
        return pixels
    pixels = np.clip(pixels, 0.0, 1.0)
    if strict:
        _refuse_colour(pixels)
    return pixels @ _LUMA


def square_pixels(image: NDArray[Any], height: float, width: float, source: str) -> NDArray[Any]:
    """Resamples an image whose pixels are not square: bilinear, antialiased.

    The side that is longer in the patient keeps its number of pixels; nothing is changed where the sides of a pixel
    differ by no more than :data:`SQUARE`.

    Args:
        image: [H, W] or [H, W, 3]; values are clipped to [0, 1].
        height: of one pixel, in any unit.
        width: of one pixel, in the same unit.
        source: the tag or field that they come from, for the message.

    Raises:
        ReadError: sides that no pixel can have.
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
    """Refuses decoded pixels that no image can have.

    Args:
        image: black is 0 and white is 1, not yet clipped.
        suspect: what in the file may have spoilt good pixels, such as the tags of a window.

    Raises:
        ReadError: NaN, infinite values, or one grey nearly everywhere.
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
