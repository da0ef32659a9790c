# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Converts the stored values of RGB, YBR and palette colour images; black is 0 and white is 1."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut

from bundle.data.dicom.stored import stored_pixels
from bundle.data.dicom.tables import look_up, read_table, white_of
from bundle.data.dicom.tags import tag_name, tag_values
from bundle.data.formats import ReadError
from bundle.data.pixels import eight_bits, one_channel, robust_scale

__all__ = ["read_colour"]

_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT")


def read_colour(dataset: Dataset, channels: int, strict: bool) -> NDArray[Any]:
    """Returns a colour image [H, W] or [H, W, 3]; with more than 8 bits, it is scaled to its own robust range."""
    photometric = dataset.PhotometricInterpretation
    if photometric == "PALETTE COLOR":
        pixels, white = _palette(dataset)
        return one_channel(pixels / white, channels, strict)
    if photometric not in _COLOURS:
        raise _unknown_colours(photometric)
    bits = int(dataset.BitsStored)
    white = 2**bits - 1
    # pydicom converts YBR only where 8 bits are allocated; decoders of compressed pixels return RGB.
    is_ybr = photometric in ("YBR_FULL", "YBR_FULL_422") and dataset.BitsAllocated > 8
    is_ybr = is_ybr and not dataset.file_meta.TransferSyntaxUID.is_encapsulated
    # All allocated bits are read: with those beyond BitsStored cut off, bright pixels would turn dark.
    pixels = stored_pixels(dataset, raw=is_ybr, bits_stored=dataset.BitsAllocated)
    if pixels.min() < 0 or pixels.max() > white:
        message = (
            f"the tag {tag_name('BitsStored')} is {bits}, and pixels have values from {pixels.min()} to {pixels.max()}"
        )
        raise ReadError("wrong tag", message, "Correct the tag BitsStored, or export it as PNG")
    if is_ybr:
        pixels = _to_rgb(pixels, bits)
    if bits > 8:
        return one_channel(robust_scale(pixels.astype(np.float64)), channels, strict)
    scaled = np.rint(np.clip(pixels, 0, white) * (255.0 / white)).astype(np.uint8)
    return eight_bits(Image.fromarray(scaled), channels, strict)


def _to_rgb(pixels: NDArray[Any], bits: int) -> NDArray[np.float64]:
    """Converts YBR_FULL [H, W, 3] of any bit depth to RGB (PS3.3, C.7.6.3.1.2)."""
    y, blue, red = np.moveaxis(pixels.astype(np.float64), -1, 0)
    blue, red = blue - 2.0 ** (bits - 1), red - 2.0 ** (bits - 1)
    return np.stack([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], axis=-1)


def _unknown_colours(photometric: str) -> ReadError:
    cure = "Export it as MONOCHROME2, RGB or PNG"
    return ReadError("unknown format", f"DICOM of the colour kind {photometric[:40]}", cure)


def _palette(dataset: Dataset) -> tuple[NDArray[Any], float]:
    """Returns the colours [H, W, 3] of a palette image, and the value of white."""
    raw = stored_pixels(dataset)
    if tag_values(dataset, "SegmentedRedPaletteColorLookupTableData"):
        length, first, bits = (int(number) for number in dataset.RedPaletteColorLookupTableDescriptor)
        if bits == 8 and (length or 2**16) > 2**8:
            raise ReadError("unknown format", "DICOM of a segmented palette of over 256 colours", "Export it as RGB")
        colours = apply_color_lut(np.arange(first, first + (length or 2**16)), dataset)[:, :3]
        tables = [np.ascontiguousarray(column, np.uint16) for column in colours.T]
        firsts = [first] * 3
    else:
        prefixes = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
        if not all(tag_values(dataset, f"{prefix}{part}") for prefix in prefixes for part in ("Descriptor", "Data")):
            raise ReadError("unreadable", "DICOM of palette colour without its palette", "Export it as RGB")
        pairs = [read_table(dataset, dataset, f"{prefix}Descriptor", f"{prefix}Data") for prefix in prefixes]
        tables, firsts = [table for table, _ in pairs], [first for _, first in pairs]
    planes = [look_up(table, first, raw) for table, first in zip(tables, firsts, strict=True)]
    return np.stack(planes, axis=-1), white_of(*tables)
