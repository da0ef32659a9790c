# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Reads PNG, JPEG, TIFF, BMP and WebP files with Pillow, at the full bit depth of the file."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from bundle.data.formats import MAX_PIXELS, ReadError, room_for
from bundle.data.pixels import eight_bits, one_channel, robust_scale

__all__ = ["read_picture"]

# room_for checks the size of images instead, with the bundle's own limits and messages.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

#: Tags of TIFF 6.0.
_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC, _PLANAR, _SAMPLE = 254, 258, 259, 262, 284, 339

#: Tags of TIFF 6.0: offsets and byte counts of strips, and those of tiles.
_PARTS = (273, 279), (324, 325)

#: Number of zero bytes at the end of compressed pixels that cannot be chance.
_TAIL = 64

_NATIVE = "L" if sys.byteorder == "little" else "B"


@contextmanager
def _opened(path: Path, form: str, page: int = 0) -> Iterator[ImageFile.ImageFile]:
    """Opens an image without decoding it; raises ReadError where it is too large or of an unsupported variant."""
    # Given a path, Pillow maps the file into memory, and then ignores the orientation of TIFF images.
    with open(path, "rb") as stream:
        try:
            image = Image.open(stream, formats=[form.upper()])
        except Image.DecompressionBombError as error:
            pixels = int(next(iter(re.findall(r"\d+", str(error))), "0"))
            most = f"at most {MAX_PIXELS // 10**6} million are read"
            cure = "Save it smaller, or copy it again where the header is wrong"
            message = f"its header says {pixels / 1e6:,.0f} million pixels, where {most}"
            raise ReadError("too large", message, cure) from error
        except UnidentifiedImageError as error:
            cure = "Export it again as PNG with 8 or 16 bits, or remove it"
            raise ReadError("unreadable", f"a {form} that is damaged or of a kind that is not read", cure) from error
        with image:
            if page:
                image.seek(page)
            yield image


def _check_whole(path: Path, form: str) -> None:
    """Refuses a file that is truncated or that an interrupted copy has filled up with zeros.

    Decoders do not check this: they ignore checksums and decode zeros to grey. :func:`_check_strips` checks compressed
    TIFF; in uncompressed images, zeros are valid black pixels.
    """
    size = path.stat().st_size
    with open(path, "rb") as stream:
        head = stream.read(16)
        stream.seek(max(0, size - _TAIL))
        tail = stream.read()
    end = 0
    if form == "WebP":
        end = int.from_bytes(head[4:8], "little") + 8
    elif form == "TIFF":  # the offset of its directory
        end = (
            int.from_bytes(head[8:16] if b"+" in head[2:4] else head[4:8], "little" if head[:1] == b"I" else "big") + 8
        )
    if end > size:
        message = f"the file is cut off ({size} bytes, where its header says {end} or more)"
        raise ReadError("truncated", message, "Copy it again from the source")
    if form == "PNG":
        with _opened(path, form) as image:
            try:
                image.verify()
            except SyntaxError as error:
                message = f"the file is damaged, its checksums do not fit its content ({error})"
                raise ReadError("unreadable", message, "Copy it again from the source") from error
    elif form in ("JPEG", "WebP") and not tail.strip(b"\0"):
        content = path.read_bytes().rstrip(b"\0")
        if form == "WebP":
            # Flat macroblocks at the end of a complete image take up to half a zero byte each, rarely 1/8 of the file.
            with _opened(path, form) as image:
                least = min(end // 8, image.width * image.height // 256)
            whole = end - len(content) < max(least, _TAIL)
        else:
            whole = content.endswith(b"\xff\xd9")  # the end-of-image marker; zeros after it are padding
        if not whole:
            _refuse_zeros(size - len(content))


def _refuse_zeros(number: int) -> None:
    message = f"{number} bytes at the end of the picture are zero, as an interrupted copy leaves them"
    raise ReadError("truncated", message, "Copy it again from the source; if it is whole, save it as PNG")


def _check_strips(path: Path, image: ImageFile.ImageFile) -> None:
    """Refuses a compressed TIFF with a strip or tile that ends in more zeros than any compression writes."""
    if _tag(image, _COMPRESSION, 1) == 1:
        return
    tags: dict[int, tuple[int, ...]] = getattr(image, "tag_v2", {})
    with open(path, "rb") as stream:
        for places, lengths in _PARTS:
            for place, length in zip(tags.get(places, ()), tags.get(lengths, ()), strict=False):
                tail = min(length, _TAIL)
                stream.seek(place + length - tail)
                if tail and not stream.read(tail).strip(b"\0"):
                    _refuse_zeros(tail)


def _tag(image: ImageFile.ImageFile, tag: int, default: int) -> int:
    """Returns the first value of a TIFF tag; the default in other formats."""
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)


def _raw_mode(args: Any) -> str:
    """Returns Pillow's raw mode, the layout of the stored samples, from the arguments of a decoder."""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _is_single(image: ImageFile.ImageFile) -> bool:
    """Returns whether an image has one band of more than 8 bits, or of 8 signed bits."""
    return image.mode.startswith(("I", "F")) or (image.mode == "L" and _tag(image, _SAMPLE, 1) == 2)


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """Returns whether an image that is not loaded yet has several bands of 16 bits, which Pillow reduces to 8."""
    deep = any(";16" in _raw_mode(tile.args) for tile in image.tile) or _tag(image, _BITS, 8) == 16
    return deep and not _is_single(image)


def _load(image: ImageFile.ImageFile, layout: Callable[[str], str] = str) -> NDArray[Any]:
    """Decodes an image with the raw mode that `layout` returns for the one that Pillow chose."""
    tiles = []
    for tile in image.tile:
        mode = layout(_raw_mode(tile.args))
        tiles.append(tile._replace(args=(mode, *tile.args[1:]) if isinstance(tile.args, tuple) else mode))
    image.tile = tiles
    image.load()
    return np.asarray(ImageOps.exif_transpose(image))


def _deep_colour(path: Path, form: str, page: int) -> NDArray[Any]:
    """Returns float32 [H, W, 3] in 0 to 65535, with all 16 bits of each sample; transparent parts are black.

    Pillow keeps only the upper byte of 16-bit samples. Decoding again with the opposite byte order gives the lower one.
    16-bit grey with transparency has four bytes per pixel and is decoded as four 8-bit bands.
    """
    with _opened(path, form, page) as image:
        mode, bands, key = _raw_mode(image.tile[0].args), image.mode, image.info.get("transparency")
        order = mode[-1].replace("N", _NATIVE)
        if form == "TIFF" and _tag(image, _PLANAR, 1) == 2:
            if image.tile[0].codec_name == "libtiff":
                cure = "Save it uncompressed, or with the samples of a pixel together"
                raise ReadError("unknown format", "a TIFF of compressed planes of 16 bits", cure)
            order = "L" if image.tag_v2.prefix == b"II" else "B"  # type: ignore[attr-defined]
        if mode.startswith("LA;"):
            four = _load(image, lambda _: "RGBA").astype(np.float32)
            grey, alpha = four[..., 0] * 256 + four[..., 1], four[..., 2] * 256 + four[..., 3]
            return np.repeat((grey * (alpha / np.float32(65535)))[..., None], 3, axis=-1)
        high = _load(image, lambda mode: f"{mode.split(';')[0]};16{order}").astype(np.float32)
    with _opened(path, form, page) as image:
        other = "LB"[order == "L"]
        samples = high * 256 + _load(image, lambda mode: f"{mode.split(';')[0]};16{other}")
    if bands == "CMYK":
        return (65535 - samples[..., :3]) * (1 - samples[..., 3:] / 65535)
    colour = samples[..., :3]
    if mode.startswith("RGBA"):
        return colour * (samples[..., 3:] / 65535)
    if form == "PNG" and key is not None:  # the key is the one transparent colour
        colour[(colour == np.array(key)).all(axis=-1)] = 0
    return colour


def _single_band(image: ImageFile.ImageFile) -> NDArray[np.float64]:
    """Returns the stored values [H, W] of a one-band image."""
    # libtiff returns numbers in the machine's byte order, which Pillow accounts for in unsigned 16-bit data only.
    native = sys.byteorder == "little" and image.tile[0].codec_name == "libtiff"
    values = _load(image, (lambda mode: mode.replace("BS", "S").replace("BF", "F")) if native else str)
    key = image.info.get("transparency")
    if isinstance(key, int) and image.format == "PNG":  # the key is the one transparent grey value
        values = np.where(values == key, 0, values)
    if image.mode == "L":
        values = values.view(np.int8)
    if values.dtype == np.int32 and (_tag(image, _BITS, 8), _tag(image, _SAMPLE, 1)) == (32, 1):
        values = values.view(np.uint32)
    # For the photometric interpretation WhiteIsZero, Pillow inverts 8-bit data only.
    inverted = _tag(image, _PHOTOMETRIC, 1) == 0
    return -values.astype(np.float64) if inverted else values.astype(np.float64)


def _page(image: ImageFile.ImageFile, form: str) -> int:
    """Returns the index of the frame to read: the only one, or the only one of a TIFF that is no thumbnail or mask.

    In a JPEG it is the first, since cameras append previews (MPO).
    """
    frames = 1 if form == "JPEG" else getattr(image, "n_frames", 1)
    if frames == 1:
        return 0
    full = []
    if form == "TIFF":
        for page in range(frames):
            image.seek(page)
            if not _tag(image, _SUBFILE, 0) & 0b101:
                full.append(page)
    if len(full) != 1:
        raise ReadError("3D volume", f"holds {len(full) or frames} frames", "Save one frame as one file")
    return full[0]


def read_picture(path: Path, form: str, channels: int, strict: bool) -> NDArray[Any]:
    """Reads a PNG, JPEG, TIFF, BMP or WebP file.

    Args:
        path: path of the file.
        form: name of the format, such as "PNG".
        channels: number of channels to return, 1 or 3; colour is converted to luma for 1.
        strict: whether to refuse colour images where one channel is requested.

    Returns:
        float32 [H, W] or [H, W, 3]; black is 0 and white is 1.

    Raises:
        ReadError: the file holds several images or is too large, damaged or of an unsupported variant; or it is in
            colour and this is refused.
    """
    _check_whole(path, form)
    with _opened(path, form) as image:
        page = _page(image, form)
    with _opened(path, form, page) as image:
        if form == "TIFF":
            _check_strips(path, image)
        sample_bytes = 4 if _is_single(image) else 2 if _is_deep(image) else 1
        with room_for(*image.size, sample_bytes * len(image.getbands())):
            if _is_single(image):
                pixels = robust_scale(_single_band(image))
            elif _is_deep(image):
                pixels = one_channel(robust_scale(_deep_colour(path, form, page)), channels, strict)
            else:
                image.load()
                pixels = eight_bits(ImageOps.exif_transpose(image), channels, strict)
            return pixels.astype(np.float32, copy=False)
