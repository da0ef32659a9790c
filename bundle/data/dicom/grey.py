# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Converts the stored values of MONOCHROME images by rescale and window; black is 0 and white is 1."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from bundle.data.dicom.stored import stored_pixels
from bundle.data.dicom.tables import look_up, read_table, white_of
from bundle.data.dicom.tags import tag_name, tag_names, tag_number, tag_values, wrong_tag
from bundle.data.formats import ReadError
from bundle.data.pixels import check_pixels, full_scale, percentiles, robust_scale

__all__ = ["MAX_LOST", "read_grey"]

#: Largest share of the pixels between an image's own black and white that a window may saturate to black or white.
#: Pixels that are black or white anyway (background, collimated borders, burned-in text) do not count. Windows made for
#: display saturate less than half of the anatomy; one in 8-bit units on 12-bit pixels saturates nine tenths or more.
MAX_LOST = 0.7

#: Share of an image's robust range, at each end, that counts as the image's own black or white.
_PLAIN = 0.05

#: Outputs within this distance of 0 or 1 count as saturated: half a step of 8 bits.
_SATURATED = 0.5 / 255


def read_grey(dataset: Dataset) -> tuple[NDArray[Any], str]:
    """Returns a MONOCHROME image [H, W], and the tags that are the probable cause if it is blank ("" for none)."""
    raw = stored_pixels(dataset)
    padding = _padding(dataset, raw)
    if padding.all():
        raise ReadError(
            "blank",
            f"the tag {tag_name('PixelPaddingValue')} makes every pixel padding",
            "Correct or delete the tag PixelPaddingValue",
        )
    _check_range(raw[~padding])
    values, suspect = _rescale(dataset, raw)
    if suspect:
        _check_range(values[~padding], suspect)
    windowed = _window(dataset, values)
    if windowed is not None:
        scaled, tags = windowed
        check_pixels(scaled[~padding], tags)
        _check_window(values[~padding], scaled[~padding], tags)
        suspect = tags
    elif raw.dtype == np.uint8 and values is raw:
        scaled = full_scale(raw)
    else:
        scaled = robust_scale(values.astype(np.float64), ~padding)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        scaled = 1.0 - scaled
    # Padding is not tissue, so that it is black even where MONOCHROME1 is inverted.
    return np.where(padding, 0.0, scaled), suspect


def _padding(dataset: Dataset, raw: NDArray[Any]) -> NDArray[np.bool_]:
    """Returns the mask of padding pixels; corrects a padding value that is written with the wrong sign."""
    ends = [tag_number(dataset, keyword) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if ends[0] is None:
        return np.zeros(raw.shape, bool)
    bits = int(tag_number(dataset, "BitsStored") or 8 * raw.dtype.itemsize)
    signed = np.issubdtype(raw.dtype, np.signedinteger)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    stored = sorted(
        end if low <= end <= high else low + (end - low) % 2**bits for end in (int(e) for e in ends if e is not None)
    )
    padding: NDArray[np.bool_] = (raw >= stored[0]) & (raw <= stored[-1])
    return padding


def _check_range(values: NDArray[Any], suspect: str = "") -> None:
    low, high = percentiles(values)
    if low == high:
        after = f" after {suspect}" if suspect else ""
        cure = f"Correct or delete {suspect}" if suspect else "Remove it"
        raise ReadError("blank", f"all but a few pixels have the value {low:g}{after}", cure)


def _rescale(dataset: Dataset, raw: NDArray[Any]) -> tuple[NDArray[Any], str]:
    """Applies the modality LUT, or rescale slope and intercept; returns the values and the tags that were applied."""
    item = _lut(dataset, "ModalityLUTSequence")
    if item is not None:
        table, first = read_table(dataset, item, "LUTDescriptor", "LUTData")
        return look_up(table, first, raw), f"the tag {tag_name('ModalityLUTSequence')}"
    slope, intercept = tag_number(dataset, "RescaleSlope"), tag_number(dataset, "RescaleIntercept")
    if slope is None and intercept is None:
        return raw, ""
    if slope == 0:
        raise wrong_tag("RescaleSlope", "is 0, which makes all pixels equal")
    values = raw.astype(np.float64) * (1.0 if slope is None else slope) + (intercept or 0.0)
    return values, f"the tags {tag_names('RescaleSlope', 'RescaleIntercept')}"


def _window(dataset: Dataset, values: NDArray[Any]) -> tuple[NDArray[Any], str] | None:
    """Applies the first VOI LUT or else the first window; returns values in [0, 1] and the tags, None without both."""
    item = _lut(dataset, "VOILUTSequence")
    if item is not None:
        table, first = read_table(dataset, item, "LUTDescriptor", "LUTData")
        return look_up(table, first, values) / white_of(table), f"the tag {tag_name('VOILUTSequence')}"
    centre, width = tag_number(dataset, "WindowCenter"), tag_number(dataset, "WindowWidth")
    if centre is None or width is None:
        return None
    function = str((tag_values(dataset, "VOILUTFunction") or ["LINEAR"])[0]).strip().upper()
    if width <= 0 or (function == "LINEAR" and width < 1):
        raise ReadError(
            "window",
            f"the tag {tag_name('WindowWidth')} is {width:g}, which is no width of a window",
            "Correct or delete the tags WindowCenter and WindowWidth",
        )
    # PS3.3, C.11.2.1.2 and C.11.2.1.3
    if function == "LINEAR":
        # A window of width 1 is a threshold.
        scaled = (values - (centre - 0.5)) / max(width - 1.0, 1e-6) + 0.5
    elif function == "LINEAR_EXACT":
        scaled = (values - centre) / width + 0.5
    elif function == "SIGMOID":
        scaled = 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -700.0, 700.0)))
    else:
        raise wrong_tag("VOILUTFunction", f"names {function[:40]!r}, which is no function of a window")
    return np.clip(scaled, 0.0, 1.0), f"the tags {tag_names('WindowCenter', 'WindowWidth')}"


def _lut(dataset: Dataset, keyword: str) -> Dataset | None:
    """Returns the first lookup table of a sequence; None where there is none or it is empty."""
    items = tag_values(dataset, keyword)
    return items[0] if items and tag_values(items[0], "LUTData") else None


def _check_window(values: NDArray[Any], scaled: NDArray[Any], tags: str) -> None:
    """Refuses a window that saturates more than :data:`MAX_LOST` of the relevant pixels.

    Both arrays are [N] without padding: `values` before the window that `tags` define, `scaled` after it.
    """
    low, high = percentiles(values)
    plain = _PLAIN * (high - low)
    inside = (values > low + plain) & (values < high - plain)
    lost = inside & ((scaled <= _SATURATED) | (scaled >= 1.0 - _SATURATED))
    # An image of two grey levels has no pixels in between that could be lost.
    if inside.mean() > _PLAIN and lost.sum() > MAX_LOST * inside.sum():
        raise ReadError(
            "window",
            f"{tags} turn {lost.sum() / inside.sum():.0%} of the image plain black or white "
            f"(pixel values {low:g} to {high:g})",
            "Correct them to the units of the pixels, or delete them",
        )
