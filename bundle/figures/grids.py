# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Grids of images, their conversion to 8 bits, and PNG files."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from bundle.files import atomic_write

__all__ = ["contact_sheet", "from_uint8", "image_grid", "png_bytes", "save_png", "to_uint8"]

_GAP = 2
_WHITE = 255


def to_uint8(images: Tensor) -> npt.NDArray[np.uint8]:
    """Converts images to 8 bits; every figure and every released file uses this function.

    Args:
        images: images ``[N, 1 or 3, H, W]`` in [-1, 1]; values outside are clipped.

    Returns:
        uint8 pixels, ``[N, H, W]`` for one channel and ``[N, H, W, 3]`` for three; -1 is mapped to 0 and 1 to 255.

    Raises:
        ValueError: the images have another shape or contain values that are not finite.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"Images are expected as [N, C, H, W] with 1 or 3 channels, not {list(images.shape)}. Stack them first."
        )
    values = images.detach().float().cpu()
    if not bool(values.isfinite().all()):
        raise ValueError("An image holds NaN or infinite values and cannot be drawn. Look for where it was made.")
    array: npt.NDArray[np.uint8] = (values + 1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray(array[..., 0] if array.shape[-1] == 1 else array)


def from_uint8(pixels: Tensor) -> Tensor:
    """Converts 8-bit pixels to images, the inverse of `to_uint8` up to rounding.

    Args:
        pixels: uint8 pixels, ``[N, H, W]`` for one channel, ``[N, H, W, 3]`` for three.

    Returns:
        Images ``[N, 1 or 3, H, W]``, float32, in [-1, 1].
    """
    images = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.movedim(-1, 1)
    return images.float() / 127.5 - 1.0


def image_grid(images: Tensor, columns: int, labels: Sequence[str] | None = None) -> Image.Image:
    """Arranges images in a grid, row by row, at their original size.

    Args:
        images: images ``[N, 1 or 3, H, W]`` in [-1, 1].
        columns: number of images in a row.
        labels: one label per row, written to its left; None for no labels.

    Returns:
        The grid, of mode L (one channel) or RGB.

    Raises:
        ValueError: there is no image or no column, or the number of labels is not that of the rows.
    """
    return _sheet(images, columns, row_labels=labels)


def contact_sheet(images: Tensor, captions: Sequence[str], columns: int = 8) -> Image.Image:
    """Arranges images in a grid with a caption under each; long captions are cut to the width of the image.

    Args:
        images: images ``[N, 1 or 3, H, W]`` in [-1, 1].
        captions: one caption per image.
        columns: number of images in a row.

    Returns:
        The sheet, of mode L (one channel) or RGB.

    Raises:
        ValueError: there is no image or no column, or the number of captions is not that of the images.
    """
    return _sheet(images, columns, captions=captions)


def save_png(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """Writes an image as PNG to a temporary file that is renamed to ``path`` once it is complete.

    Args:
        picture: image to write.
        path: name of the file; missing folders are created.
    """
    content = png_bytes(picture, optimize=True)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def png_bytes(picture: Image.Image, **options: Any) -> bytes:
    """Encodes an image as PNG.

    The caller writes the bytes, because Pillow reports a full disk as an "encoder error".

    Args:
        picture: image to encode.
        options: Pillow's options for PNG.
    """
    stream = io.BytesIO()
    picture.save(stream, format="PNG", **options)
    return stream.getvalue()


def _sheet(
    images: Tensor, columns: int, row_labels: Sequence[str] | None = None, captions: Sequence[str] | None = None
) -> Image.Image:
    if not len(images) or columns < 1:
        raise ValueError(f"A sheet needs at least one image and one column, not {len(images)} and {columns}.")
    arrays = to_uint8(images)
    height, width = arrays.shape[1:3]
    columns = min(columns, len(arrays))
    rows = -(-len(arrays) // columns)
    for name, texts, expected in (("labels", row_labels, rows), ("captions", captions, len(arrays))):
        if texts is not None and len(texts) != expected:
            raise ValueError(f"{len(texts)} {name} do not fit {expected} places. Give one for each.")
    font = ImageFont.load_default(size=max(9, min(14, height // 8)))
    # The height of the tallest letters is used for every caption.
    line = round(font.getbbox("Ågj")[3]) + _GAP if captions is not None else 0
    margin = round(max((font.getlength(text) for text in row_labels or ()), default=-2 * _GAP)) + 2 * _GAP
    picture = Image.new(
        "L" if arrays.ndim == 3 else "RGB",
        (margin + columns * (width + _GAP) - _GAP, rows * (height + line + _GAP) - _GAP),
        _WHITE if arrays.ndim == 3 else (_WHITE,) * 3,
    )
    draw = ImageDraw.Draw(picture)
    black = 0 if arrays.ndim == 3 else (0, 0, 0)
    for index, array in enumerate(arrays):
        row, column = divmod(index, columns)
        left, top = margin + column * (width + _GAP), row * (height + line + _GAP)
        picture.paste(Image.fromarray(array), (left, top))
        if captions is not None:
            draw.text((left, top + height), _cut(captions[index], width, font), fill=black, font=font)
    for row, text in enumerate(row_labels or ()):
        draw.text((_GAP, row * (height + _GAP) + height / 2), text, fill=black, font=font, anchor="lm")
    return picture


def _cut(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
