# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Reads NIfTI files of one slice and turns them upright by their affine."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bundle.data.formats import MAX_BYTES, ReadError, room_for
from bundle.data.pixels import eight_bits, full_scale, robust_scale, square_pixels

__all__ = ["read_nifti"]

#: Largest offset of the voxels in a file, in bytes; a header that claims more is taken to be wrong.
_MAX_OFFSET = 2**24

#: Intents (NIfTI-1.1) of images whose fifth dimension holds red, green and blue, and opacity.
_COLOUR_INTENTS = {2003: 3, 2004: 4}


def _read_header(path: Path) -> tuple[int, int, int]:
    """Returns (columns, rows, bytes per voxel); refuses volumes, and wrong headers that nibabel takes hours to open."""
    with gzip.open(path, "rb") if path.name.lower().endswith(".gz") else open(path, "rb") as stream:
        head = stream.read(540)
    if len(head) < 348:
        raise EOFError("the header is not whole")
    if head[344:347] not in (b"n+1", b"ni1") and head[4:7] not in (b"n+2", b"ni2"):
        raise ReadError("unreadable", "its content is no NIfTI image", "Export or copy it again, or remove it")
    header: Any
    if head[4:7] in (b"n+2", b"ni2"):
        header = nibabel.Nifti2Header(head, check=False)
    else:
        header = nibabel.Nifti1Header(head[:348], check=False)
    shape, samples = _spatial_shape(header)
    axes = [length for length in shape if length > 1]
    if len(axes) != 2 or min(shape) < 1:
        sort = "3D volume" if len(axes) > 2 else "blank"
        raise ReadError(sort, f"NIfTI of shape {shape}", "Save one slice as a 2D NIfTI, or the image as PNG")
    if not 0 <= float(header["vox_offset"]) <= _MAX_OFFSET:
        raise ReadError(
            "too large",
            f"its header says that {float(header['vox_offset']) / 1e6:,.0f} MB stand before the voxels, "
            f"where at most {_MAX_OFFSET // 2**20} MB are read",
            "Save the image again, or copy it again",
        )
    return axes[0], axes[1], samples * header.get_data_dtype().itemsize


def _spatial_shape(header: Any) -> tuple[tuple[int, ...], int]:
    """Returns the shape without the dimension of colours, and the number of colours: 1 if there is none."""
    shape = tuple(map(int, header.get_data_shape()))
    colours = _COLOUR_INTENTS.get(int(header["intent_code"]))
    if colours is None or len(shape) != 5 or shape[4] != colours:
        return shape, 1
    return shape[:4], colours


def _check_sum(path: Path) -> None:
    """Reads a compressed file to the end to verify its checksum, since nibabel stops at the last voxel."""
    if not path.name.lower().endswith(".gz"):
        return
    length = 0
    with gzip.open(path, "rb") as stream:
        try:
            while block := stream.read(2**20):
                length += len(block)
                if length > MAX_BYTES + _MAX_OFFSET:
                    message = f"inflates to more than {(MAX_BYTES + _MAX_OFFSET) // 10**6} MB"
                    raise ReadError("too large", message, "Save the image again, or copy it again")
        except (gzip.BadGzipFile, zlib.error) as error:
            message = f"the file is damaged, its checksum does not fit its content ({error})"
            raise ReadError("unreadable", message, "Copy it again from the source") from error


def read_nifti(path: Path, channels: int, strict: bool) -> NDArray[Any]:
    """Reads a NIfTI file of one slice, of numbers or of RGB or RGBA voxels of 8 bits (as a data type or an intent).

    Args:
        path: path of the file.
        channels: number of channels to return, 1 or 3; colour is converted to luma for 1.
        strict: whether to refuse colour images where one channel is requested.

    Returns:
        float32 [H, W] or [H, W, 3], upright, with square pixels; black is 0 and white is 1.

    Raises:
        ReadError: the file is a volume, has complex voxels or NaN, is damaged or too large; or `strict` refuses its
            colour.
    """
    with room_for(*_read_header(path)):
        _check_sum(path)
        return _read_slice(nibabel.load(path), channels, strict).astype(np.float32)


def _read_slice(image: Any, channels: int, strict: bool) -> NDArray[Any]:
    shape, samples = _spatial_shape(image.header)
    axes = [axis for axis, length in enumerate(shape) if length > 1]
    if image.dataobj.dtype.kind == "c":
        raise ReadError("unknown format", "NIfTI of complex voxels", "Save the magnitude")
    values = np.asarray(image.dataobj).reshape([*(shape[axis] for axis in axes), *[samples] * (samples > 1)])
    if values.dtype.names is not None:
        values = np.stack([values[name] for name in values.dtype.names], axis=-1)
    if values.ndim == 3 and values.dtype != np.uint8:
        raise ReadError("unknown format", f"NIfTI of colour voxels of type {values.dtype}", "Save the image as PNG")
    zooms = [float(zoom) for zoom in image.header.get_zooms()]
    sides = [zooms[axis] for axis in axes]
    codes: list[str] = ["L", "P"]
    if any(int(image.header[key]) > 0 for key in ("qform_code", "sform_code")) and max(axes) < 3:
        names = nibabel.aff2axcodes(image.affine)
        codes = [names[axis] or "" for axis in axes]
    # Upright: the row index increases towards I (P in axial images), the column index towards L (P in sagittal ones).
    horizontal = next((axis for axis in (0, 1) if codes[axis] in ("L", "R")), None)
    if horizontal is None:
        horizontal = next((axis for axis in (0, 1) if codes[axis] in ("A", "P")), 0)
    vertical = 1 - horizontal
    if codes[horizontal] in ("R", "A"):
        values = np.flip(values, horizontal)
    if codes[vertical] in ("S", "A"):
        values = np.flip(values, vertical)
    values = np.ascontiguousarray(np.swapaxes(values, 0, 1) if vertical else values)
    if values.ndim == 3:
        scaled = eight_bits(Image.fromarray(values), channels, strict)
    else:
        scaled = full_scale(values) if values.dtype == np.uint8 else robust_scale(values.astype(np.float64))
    return square_pixels(scaled, sides[vertical], sides[horizontal], "the field pixdim of the header")
