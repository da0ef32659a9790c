# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Pictures that Pillow reads (PNG, JPEG, TIFF, BMP, WebP), with all the grey levels that the file holds."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from bundle.data.formats import MAX_PIXELS, ReadError, room_for
from bundle.data.pixels import eight_bits, one_channel, robust_scale

__all__ = ["read_picture"]

# Pillow's own limits on the size of a picture speak in its own words; room_for takes their place.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

#: Tags of TIFF 6.0.
_SUBFILE, _BITS, _PHOTOMETRIC, _PLANAR, _SAMPLE = 254, 258, 262, 284, 339


def _open(path: Path, form: str) -> ImageFile.ImageFile:
    """Opens a picture without decoding it.

    Raises:
        ReadError: it is too large, or of a kind of its format that is not read.
    """
    try:
        image = Image.open(path, formats=[form.upper()])
    except Image.DecompressionBombError as error:
        pixels = int(next(iter(re.findall(r"\d+", str(error))), "0"))
        message = (
            f"its header says {pixels / 1e6:,.0f} million pixels, where at most {MAX_PIXELS // 10**6} million are read"
        )
        raise ReadError("too large", message, "Save it smaller, or copy it again where the header is wrong") from error
    except UnidentifiedImageError as error:
        cure = "Export it again as PNG with 8 or 16 bits, or remove it"
        raise ReadError("unreadable", f"a {form} that is damaged or of a kind that is not read", cure) from error
    return image


def _is_single(image: ImageFile.ImageFile) -> bool:
    """Whether a picture is one band of more than 8 bits."""
    return image.mode.startswith(("I", "F"))


def _raw_mode(args: Any) -> str:
    """Returns the layout of the stored samples, in Pillow's words, from the arguments of a decoder."""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether a picture, not loaded yet, has several bands of 16 bits, of which Pillow keeps 8."""
    return not _is_single(image) and any(";16" in _raw_mode(tile.args) for tile in image.tile)


def _load_as(path: Path, form: str, page: int, modes: dict[str, str]) -> NDArray[np.uint8]:
    """Decodes a picture whose stored samples are taken to have the layouts that `modes` gives to theirs."""
    with _open(path, form) as image:
        if page:
            image.seek(page)
        tiles = []
        for tile in image.tile:
            mode = modes[_raw_mode(tile.args)]
            tiles.append(tile._replace(args=(mode, *tile.args[1:]) if isinstance(tile.args, tuple) else mode))
        image.tile = tiles
        image.load()
        return np.asarray(ImageOps.exif_transpose(image))


def _swapped(mode: str) -> str:
    """Returns the layout with its bytes in the other order; N is the machine's own."""
    native = "L" if sys.byteorder == "little" else "B"
    return mode[:-1] + ("L" if mode[-1].replace("N", native) == "B" else "B")


def _deep_colour(path: Path, form: str, page: int, image: ImageFile.ImageFile) -> NDArray[np.float32]:
    """Returns [H, W, 3], all 16 bits of each sample; transparent parts are black.

    Pillow unpacks 16 bits by taking their upper byte. Told that they are in the other byte order, it takes the lower
    one. Grey with transparency has four bytes a pixel, which are taken as four bands.
    """
    modes = {_raw_mode(tile.args) for tile in image.tile}
    if any(mode.startswith("LA;") for mode in modes):
        four = _load_as(path, form, page, dict.fromkeys(modes, "RGBA")).astype(np.float32)
        grey, alpha = four[..., 0] * 256 + four[..., 1], four[..., 2] * 256 + four[..., 3]
        return np.repeat((grey * (alpha / np.float32(65535)))[..., None], 3, axis=-1)
    if form == "TIFF" and image.tag_v2.get(_PLANAR) == 2 and image.tile[0].codec_name == "libtiff":  # type: ignore[attr-defined]
        cure = "Save it uncompressed, or with the samples of a pixel together"
        raise ReadError("unknown format", "a TIFF of compressed planes of 16 bits", cure)
    high = _load_as(path, form, page, {mode: mode for mode in modes})
    low = _load_as(path, form, page, {mode: _swapped(mode) for mode in modes})
    samples = high.astype(np.float32) * 256 + low
    if image.mode == "CMYK":
        return (65535 - samples[..., :3]) * (1 - samples[..., 3:] / 65535)  # type: ignore[return-value]
    colour, mode = samples[..., :3], next(iter(modes))
    if mode.startswith("RGBA"):
        colour = colour * (samples[..., 3:] / 65535)
    elif "transparency" in image.info:  # PNG: one colour that is transparent
        colour = np.where(
            (colour == np.array(image.info["transparency"], np.float32)).all(axis=-1, keepdims=True), 0.0, colour
        )
    return colour


def _single_band(image: ImageFile.ImageFile) -> NDArray[np.float64]:
    """Returns [H, W], the stored values of one band of more than 8 bits."""
    image.load()
    tags = getattr(image, "tag_v2", {})
    inverted = tags.get(_PHOTOMETRIC) == 0  # white is zero, which Pillow heeds in 8 bits only
    unsigned = tags.get(_BITS) == (32,) and tags.get(_SAMPLE, (1,)) == (1,)
    values = np.asarray(ImageOps.exif_transpose(image))
    if unsigned and values.dtype == np.int32:
        values = values.view(np.uint32)
    return -values.astype(np.float64) if inverted else values.astype(np.float64)


def _page(image: ImageFile.ImageFile, form: str) -> int:
    """Returns which picture of the file is meant: the only one, or in a TIFF the only one that is no thumbnail or mask.

    Cameras add previews to their JPEG files (as MPO); the first picture is the photograph.
    """
    frames = 1 if form == "JPEG" else getattr(image, "n_frames", 1)
    if frames == 1:
        return 0
    full = []
    if form == "TIFF":
        for page in range(frames):
            image.seek(page)
            if not int(image.tag_v2.get(_SUBFILE, 0)) & 0b101:  # type: ignore[attr-defined]
                full.append(page)
    if len(full) != 1:
        raise ReadError("3D volume", f"holds {len(full) or frames} frames", "Save one frame as one file")
    return full[0]


def read_picture(path: Path, form: str, channels: int, strict: bool) -> NDArray[Any]:
    """Reads a PNG, JPEG, TIFF, BMP or WebP file.

    Args:
        path: the file.
        form: which of the formats it is.
        channels: 1 or 3; colour becomes luma where 1 are wanted.
        strict: whether colour is refused where one channel is wanted.

    Returns:
        [H, W] or [H, W, 3], black 0 and white 1.

    Raises:
        ReadError: several pictures, too large a one, or colour that is refused.
    """
    with _open(path, form) as image:
        page = _page(image, form)
        if page or getattr(image, "is_animated", False):
            image.seek(page)
        sample_bytes = 4 if _is_single(image) else 2 if _is_deep(image) else 1
        with room_for(*image.size, sample_bytes * len(image.getbands())):
            if _is_single(image):
                pixels = robust_scale(_single_band(image))
            elif _is_deep(image):
                pixels = one_channel(robust_scale(_deep_colour(path, form, page, image)), channels, strict)
            else:
                image.load()
                pixels = eight_bits(ImageOps.exif_transpose(image), channels, strict)
            return pixels.astype(np.float32, copy=False)
