# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bundle.data.pixels import ROBUST_PERCENTILES
from bundle.data.readers import ReadError, decode

Drawing = Callable[..., NDArray[np.uint8]]
Order = Literal["<", ">"]

LUMA = np.array([0.299, 0.587, 0.114])


def _robust(pixels: NDArray[Any]) -> NDArray[np.float64]:
    low, high = np.percentile(pixels, ROBUST_PERCENTILES)
    return np.clip((pixels.astype(float) - low) / (high - low), 0, 1)


def _png(pixels: NDArray[Any], colour: int, extra: bytes = b"") -> bytes:
    """A PNG of 16 bits a sample, which Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _transparent_colour(*levels: int) -> bytes:
    data = b"tRNS" + struct.pack(f">{len(levels)}H", *levels)
    return struct.pack(">I", 2 * len(levels)) + data + struct.pack(">I", zlib.crc32(data))


def _tiff(pixels: NDArray[Any], order: Order, compress: bool, planar: bool = False, **tags: int | list[int]) -> bytes:
    """A TIFF of one strip (or one a plane), in either byte order and any type of sample."""
    samples = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width, count = samples.shape
    stored = samples.astype(samples.dtype.newbyteorder(order))
    strips = [np.ascontiguousarray(stored[..., i]).tobytes() for i in range(count)] if planar else [stored.tobytes()]
    strips = [zlib.compress(strip) for strip in strips] if compress else strips
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    entries: dict[int, tuple[str, list[int]]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [8 * pixels.dtype.itemsize] * count),
        259: ("H", [8 if compress else 1]),
        262: ("H", [1 if count == 1 else 2]),
        273: ("I", [0] * len(strips)),
        277: ("H", [count]),
        278: ("I", [height]),
        279: ("I", [len(strip) for strip in strips]),
        284: ("H", [2 if planar else 1]),
        339: ("H", [kind] * count),
    }
    names = {"photometric": 262, "orientation": 274, "extra": 338}
    entries |= {names[key]: ("H", value if isinstance(value, list) else [value]) for key, value in tags.items()}
    start = 8 + 2 + 12 * len(entries) + 4
    beyond = sum(struct.calcsize(code) * len(values) for code, values in entries.values() if len(values) > 2)
    beyond += sum(8 for code, values in entries.values() if code == "I" and len(values) == 2)
    places = start + beyond + np.cumsum([0, *map(len, strips[:-1])])
    entries[273] = ("I", [int(place) for place in places])
    directory, values_beyond = b"", b""
    for tag, (code, values) in sorted(entries.items()):
        data = struct.pack(f"{order}{len(values)}{code}", *values)
        directory += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[code], len(values))
        if len(data) <= 4:
            directory += data.ljust(4, b"\0")
        else:
            directory += struct.pack(f"{order}I", start + len(values_beyond))
            values_beyond += data
    assert len(values_beyond) == beyond
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    return head + directory + bytes(4) + values_beyond + b"".join(strips)


@pytest.fixture
def deep(draw: Drawing) -> NDArray[np.uint16]:
    """12 bits, [H, W]."""
    noise = np.random.default_rng(7).integers(0, 16, draw().shape)
    return (draw().astype(np.uint16) * 16 + noise).astype(np.uint16)


@pytest.fixture
def deep_colour(deep: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """12 bits, [H, W, 3]."""
    return np.stack([deep, deep // 2, 4095 - deep], axis=-1)


@pytest.mark.parametrize("name", ["a.tif", "a.TIFF", "a.bmp", "a.webp", "a.jfif", "a.jpe"])
def test_formats_beside_png_and_jpeg(tmp_path: Path, name: str) -> None:
    smooth = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
    form = {"jf": "JPEG", "jp": "JPEG"}.get(name[2:4])
    Image.fromarray(smooth).save(tmp_path / name, form, quality=95)
    np.testing.assert_allclose(decode(tmp_path / name, 1)[0], smooth / 255, atol=0.02)


def test_of_a_cameras_mpo_the_first_picture_is_read(tmp_path: Path, draw: Drawing) -> None:
    photograph = Image.merge("RGB", [Image.fromarray(draw(seed)) for seed in range(3)])
    preview = Image.new("RGB", (20, 20), "red")
    photograph.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[preview], quality=95, subsampling=0)
    photograph.save(tmp_path / "b.jpg", "JPEG", quality=95, subsampling=0)
    np.testing.assert_array_equal(decode(tmp_path / "a.jpg", 3), decode(tmp_path / "b.jpg", 3))


def test_of_a_tiff_with_a_thumbnail_the_picture_is_read(tmp_path: Path, draw: Drawing) -> None:
    picture, thumbnail = Image.fromarray(draw()), Image.fromarray(draw(1, 20, 28))
    thumbnail.encoderinfo = {"tiffinfo": {254: 1}}
    picture.save(tmp_path / "a.tif", save_all=True, append_images=[thumbnail])
    np.testing.assert_allclose(decode(tmp_path / "a.tif", 1)[0], draw() / 255, atol=1e-6)


@pytest.mark.parametrize("suffix", ["tif", "webp"])
def test_several_pages_are_refused(tmp_path: Path, draw: Drawing, suffix: str) -> None:
    frames = [Image.fromarray(draw(i)) for i in range(3)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(ReadError, match="holds 3 frames") as caught:
        decode(tmp_path / f"a.{suffix}", 1)
    assert caught.value.kind == "3D volume"


@pytest.mark.parametrize("suffix", ["tif", "bmp", "webp", "jfif"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_pictures(tmp_path: Path, draw: Drawing, suffix: str, share: float) -> None:
    path = tmp_path / f"a.{suffix}"
    options = {"compression": "tiff_lzw"} if suffix == "tif" else {}
    Image.fromarray(draw(height=96, width=96)).save(path, "JPEG" if suffix == "jfif" else None, **options)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ReadError) as caught:
        decode(path, 1)
    kinds = ["truncated"] if suffix in ("tif", "webp") or share > 0.1 else ["truncated", "unreadable"]
    assert caught.value.kind in kinds
    assert "/" not in caught.value.message


def _refuses_zero_filled(path: Path) -> None:
    """Asserts that a file is read as it is, but not with zeros from somewhere on, as interrupted copies leave it."""
    decode(path, 1)
    content = path.read_bytes()
    for share in (0.3, 0.5, 0.7):
        kept = int(len(content) * share)
        path.write_bytes(content[:kept] + bytes(len(content) - kept))
        with pytest.raises(ReadError, match="Copy it again from the source") as caught:
            decode(path, 1)
        assert caught.value.kind in ("truncated", "unreadable")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("apng.png", {"save_all": True}),
        ("a.jpg", {}),
        ("lossless.webp", {"lossless": True}),
        ("lossy.webp", {"quality": 80}),
    ],
)
def test_zero_filled_pictures(tmp_path: Path, draw: Drawing, name: str, options: dict[str, Any]) -> None:
    Image.fromarray(draw(height=200, width=200)).save(tmp_path / name, **options)
    _refuses_zero_filled(tmp_path / name)


def test_zero_filled_pictures_of_16_bits(
    tmp_path: Path, deep: NDArray[np.uint16], deep_colour: NDArray[np.uint16]
) -> None:
    (tmp_path / "grey.png").write_bytes(_png(deep, 0))
    (tmp_path / "colour.png").write_bytes(_png(deep_colour, 2))
    for order in ("<", ">"):
        (tmp_path / f"{order}.tif").write_bytes(_tiff(deep, order, compress=True))
    for path in sorted(tmp_path.iterdir()):
        _refuses_zero_filled(path)


def test_a_png_with_a_changed_byte(tmp_path: Path, draw: Drawing) -> None:
    content = bytearray(_png(draw().astype(np.uint16), 0))
    content[-20] ^= 1
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ReadError, match=r"its checksums do not fit its content .*\. Copy it again"):
        decode(tmp_path / "a.png", 1)


@pytest.mark.parametrize(
    "options", [{"quality": 80}, {"quality": 10}, {"quality": 80, "method": 0}, {"lossless": True}]
)
def test_pictures_with_a_black_end_are_whole(tmp_path: Path, draw: Drawing, options: dict[str, Any]) -> None:
    pixels = draw(height=400, width=400)
    pixels[200:] = 0
    Image.fromarray(pixels).save(tmp_path / "a.webp", **options)
    assert (decode(tmp_path / "a.webp", 1)[0, 220:] < 0.1).all()
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    with open(tmp_path / "a.jpg", "ab") as stream:
        stream.write(bytes(500))  # padding
    decode(tmp_path / "a.jpg", 1)
    for compression in ("tiff_lzw", "packbits", None):
        Image.fromarray(pixels).save(tmp_path / "a.tif", compression=compression)
        decode(tmp_path / "a.tif", 1)


def test_colour_of_16_bits_keeps_all_levels(tmp_path: Path, deep_colour: NDArray[np.uint16]) -> None:
    (tmp_path / "a.png").write_bytes(_png(deep_colour, 2))
    expected = _robust(deep_colour)
    image = decode(tmp_path / "a.png", 3, strict=True)
    np.testing.assert_allclose(image, np.moveaxis(expected, -1, 0), atol=1e-5)
    np.testing.assert_allclose(decode(tmp_path / "a.png", 1)[0], expected @ LUMA, atol=1e-5)
    with pytest.raises(ReadError, match="is in colour"):
        decode(tmp_path / "a.png", 1, strict=True)


def test_grey_in_colour_of_16_bits_is_read_like_grey(tmp_path: Path, deep: NDArray[np.uint16]) -> None:
    (tmp_path / "a.png").write_bytes(_png(np.stack([deep] * 3, axis=-1), 2))
    Image.fromarray(deep).save(tmp_path / "b.png")
    image = decode(tmp_path / "a.png", 1, strict=True)
    np.testing.assert_allclose(image, decode(tmp_path / "b.png", 1), atol=1e-6)
    assert len(np.unique(image)) > 300
    with pytest.raises(ReadError, match="shows no colour"):
        decode(tmp_path / "a.png", 3, strict=True)


def test_transparency_of_16_bits(tmp_path: Path, deep: NDArray[np.uint16], deep_colour: NDArray[np.uint16]) -> None:
    alpha = np.full(deep.shape, 65535, np.uint16)
    alpha[-10:] = 0
    (tmp_path / "la.png").write_bytes(_png(np.dstack([deep, alpha]), 4))
    (tmp_path / "rgba.png").write_bytes(_png(np.dstack([deep_colour, alpha]), 6))
    key = (int(level) for level in deep_colour[-1, -1])
    marked = deep_colour.copy()
    marked[-10:] = deep_colour[-1, -1]
    (tmp_path / "key.png").write_bytes(_png(marked, 2, _transparent_colour(*key)))
    visible = np.where(alpha > 0, deep, 0)
    np.testing.assert_allclose(decode(tmp_path / "la.png", 1)[0], _robust(visible), atol=1e-5)
    colour = np.where(alpha[..., None] > 0, deep_colour, 0)
    np.testing.assert_allclose(decode(tmp_path / "rgba.png", 3), np.moveaxis(_robust(colour), -1, 0), atol=1e-5)
    assert (decode(tmp_path / "key.png", 3)[:, -10:] == 0).all()
    white = deep.copy()
    white[-10:] = 65535
    (tmp_path / "grey.png").write_bytes(_png(white, 0, _transparent_colour(65535)))
    np.testing.assert_allclose(decode(tmp_path / "grey.png", 1)[0], _robust(visible), atol=1e-5)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("sort", ["uint16", "int16", "int32", "float32", "turned", "int8"])
def test_tiff_of_one_deep_band(
    tmp_path: Path, deep: NDArray[np.uint16], order: Order, compress: bool, sort: str
) -> None:
    turned = {"orientation": 6} if sort == "turned" else {}
    values = np.ascontiguousarray(np.rot90(deep)) if turned else deep
    values = values // 16 - 128 if sort == "int8" else values - 1000 if sort.startswith("int") else values
    pixels = values.astype(np.uint16 if turned else sort)
    (tmp_path / "a.tif").write_bytes(_tiff(pixels, order, compress, False, **turned))
    expected = _robust(pixels if not turned else deep)
    np.testing.assert_allclose(decode(tmp_path / "a.tif", 1)[0], expected, atol=1e-5)


@pytest.mark.parametrize("compress", [False, True])
def test_tiff_of_other_scales(tmp_path: Path, deep: NDArray[np.uint16], compress: bool) -> None:
    (tmp_path / "white.tif").write_bytes(_tiff(deep, "<", compress, photometric=0))
    np.testing.assert_allclose(decode(tmp_path / "white.tif", 1)[0], 1 - _robust(deep), atol=1e-5)
    large = deep.astype(np.uint32) * 1_000_000  # beyond the signed numbers of 32 bits
    (tmp_path / "large.tif").write_bytes(_tiff(large, "<", compress))
    np.testing.assert_allclose(decode(tmp_path / "large.tif", 1)[0], _robust(large), atol=1e-5)
    gap = deep.astype(np.float32)
    gap[3, 4] = np.nan
    (tmp_path / "nan.tif").write_bytes(_tiff(gap, "<", compress))
    with pytest.raises(ReadError, match="NaN"):
        decode(tmp_path / "nan.tif", 1)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("sort", ["RGB", "RGBA", "RGBX", "CMYK", "turned", "planes"])
def test_tiff_of_deep_colour(
    tmp_path: Path, deep_colour: NDArray[np.uint16], order: Order, compress: bool, sort: str
) -> None:
    full = np.full((*deep_colour.shape[:2], 1), 65535, np.uint16)
    path, expected = tmp_path / "a.tif", _robust(deep_colour)
    if sort in ("RGBA", "RGBX"):
        path.write_bytes(_tiff(np.dstack([deep_colour, full]), order, compress, extra=[2 if sort == "RGBA" else 0]))
    elif sort == "CMYK":
        path.write_bytes(_tiff(np.dstack([65535 - deep_colour, 0 * full]), order, compress, photometric=5))
    elif sort == "turned":
        path.write_bytes(_tiff(np.ascontiguousarray(np.rot90(deep_colour)), order, compress, orientation=6))
    else:
        path.write_bytes(_tiff(deep_colour, order, compress, planar=sort == "planes"))
    if sort == "planes" and compress:
        with pytest.raises(ReadError, match="compressed planes of 16 bits"):
            decode(path, 3)
    else:
        np.testing.assert_allclose(decode(path, 3), np.moveaxis(expected, -1, 0), atol=1e-5)


def test_headers_that_claim_too_much(tmp_path: Path, deep: NDArray[np.uint16]) -> None:
    content = _png(deep, 0)
    for name, width, height in (("a.png", 12_000, 12_000), ("b.png", 60_000, 60_000)):
        header = b"IHDR" + struct.pack(">II", width, height) + content[24:29]
        (tmp_path / name).write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:])
        with pytest.raises(ReadError, match=r"its header says .* pixels, .*at most 100 million") as caught:
            decode(tmp_path / name, 1)
        assert caught.value.kind == "too large"


def test_kinds_of_tiff_that_are_not_read_are_told_from_cut_off_ones(tmp_path: Path, deep: NDArray[np.uint16]) -> None:
    (tmp_path / "a.tif").write_bytes(_tiff(deep.astype(np.float64), "<", False))
    with pytest.raises(ReadError, match=r"of a kind that is not read\. Export it again as PNG") as caught:
        decode(tmp_path / "a.tif", 1)
    assert caught.value.kind == "unreadable"
