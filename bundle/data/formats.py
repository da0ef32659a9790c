# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Recognises image files by file extension or content, and limits the size of images before they are decoded."""

from __future__ import annotations

import os
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from pydicom.datadict import dictionary_has_tag
from pydicom.uid import MediaStorageDirectoryStorage
from pydicom.valuerep import VR

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_BYTES",
    "MAX_PIXELS",
    "SUPPORTED_FORMATS",
    "ReadError",
    "check_format",
    "check_size",
    "image_format",
    "image_stem",
    "image_suffix",
    "is_dicom",
    "room_for",
]

#: Supported file extensions and the format that each stands for.
IMAGE_SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".webp": "WebP",
    ".dcm": "DICOM",
    ".dicom": "DICOM",
    ".ima": "DICOM",
    ".nii": "NIfTI",
    ".nii.gz": "NIfTI",
}

#: Supported formats, as messages list them.
SUPPORTED_FORMATS = "PNG, JPEG, TIFF, BMP, WebP, DICOM or 2D NIfTI"

#: Largest image that is decoded, in pixels; a 14 x 17 inch film scanned at 600 dpi has 86 million.
MAX_PIXELS = 100_000_000

#: Largest image that is decoded, in bytes at the file's bit depth: three samples of 8 bits for each pixel.
MAX_BYTES = 3 * MAX_PIXELS

#: Images of more pixels are decoded one at a time, since decoding takes up to 50 bytes of memory per pixel.
_LARGE = 2**24

_one_large = threading.RLock()

#: Number of bytes at the start of a file that are read to recognise its format.
_HEAD = 1024

#: First bytes of a file and the format that they show; unsupported formats are listed for messages.
_SIGNATURES = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"\x1f\x8b": "NIfTI",
    b"BM": "BMP",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"%PDF": "PDF",
    b"PK\x03\x04": "ZIP",
}

#: All value representations, and those with two reserved bytes and a length of four bytes (DICOM PS3.5, 7.1.2).
_VR = {member.value.encode() for member in VR if len(member.value) == 2}
_LONG_VR = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}


class ReadError(Exception):
    """Error for a file that cannot be read as an image.

    Attributes:
        kind: short name of the category, as in :class:`bundle.data.errors.Problem`.
        message: description of the problem.
        cure: advice on how to solve it.
    """

    def __init__(self, kind: str, message: str, cure: str) -> None:
        super().__init__(f"{message}. {cure}.")
        self.kind = kind
        self.message = message
        self.cure = cure


def image_suffix(path: Path) -> str:
    """Returns the file extension in lower case, with ``.nii.gz`` as one; "" where it is no key of IMAGE_SUFFIXES.

    DICOM files are often named by a UID: ``1.2.840.55`` has no extension.
    """
    name = path.name.lower()
    suffix = ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()
    return suffix if suffix in IMAGE_SUFFIXES else ""


def image_stem(path: Path) -> str:
    """Returns the file's name without the extension that :func:`image_suffix` returns."""
    return path.name[: -len(image_suffix(path)) or None]


def _read_head(path: Path) -> bytes:
    """Returns the first bytes of a regular file; b"" for one that is absent, unreadable, or a pipe or device."""
    try:
        # Without O_NONBLOCK, opening a pipe that replaces the file after the check would wait for a writer.
        if not stat.S_ISREG(path.stat().st_mode):
            return b""
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
            return file.read(_HEAD)
    except (OSError, ValueError):
        return b""


def _starts_with_elements(head: bytes) -> bool:
    """Returns whether bytes start a DICOM data set: group 2 or 8 first, then known tags in ascending order."""
    # Group 2 and most data sets are little-endian; in big-endian ones, group 8 is stored as 00 08.
    order = ">" if head[:2] == b"\0\x08" else "<"
    position, last, known = 0, 0, 0
    while position + 12 <= len(head):
        group, element = struct.unpack_from(f"{order}HH", head, position)
        tag, code = (group << 16) | element, head[position + 4 : position + 6]
        if (known == 0 and group not in (0x0002, 0x0008)) or tag <= last or not dictionary_has_tag(tag):
            break
        if code in _LONG_VR:
            length, start = struct.unpack_from(f"{order}I", head, position + 8)[0], 12
        elif code in _VR:
            length, start = struct.unpack_from(f"{order}H", head, position + 6)[0], 8
        else:  # implicit value representation
            length, start = struct.unpack_from(f"{order}I", head, position + 4)[0], 8
        if length % 2 and length != 0xFFFFFFFF:  # lengths are even, or 0xFFFFFFFF for undefined
            break
        known, last, position = known + 1, tag, position + start + length
    return known >= 2


def _content_format(head: bytes) -> str | None:
    """Returns the format that a file's first bytes indicate, or None."""
    if head[128:132] == b"DICM":
        return "DICOM"
    if head[344:347] in (b"n+1", b"ni1") or head[4:7] in (b"n+2", b"ni2"):
        return "NIfTI"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    found = next((name for signature, name in _SIGNATURES.items() if head.startswith(signature)), None)
    if found is None and _starts_with_elements(head):
        return "DICOM"
    return found


def is_dicom(path: Path) -> bool:
    """Returns whether a file's content is DICOM, with or without preamble; False where it cannot be read."""
    return _content_format(_read_head(path)) == "DICOM"


def image_format(path: Path) -> str | None:
    """Returns the format that a file would be read as, or None for a file that is no image.

    A file extension in :data:`IMAGE_SUFFIXES` determines the format, regardless of the content and existence of the
    file. Other files are images if their content is DICOM (but not the index DICOMDIR). At most one kilobyte is read,
    of regular files only, and no error is raised.
    """
    suffix = image_suffix(path)
    if suffix:
        return IMAGE_SUFFIXES[suffix]
    head = _read_head(path)
    if _content_format(head) != "DICOM" or MediaStorageDirectoryStorage.encode() in head:
        return None
    return "DICOM"


def check_format(path: Path) -> str:
    """Returns the format of a file whose extension and content agree.

    Raises:
        ReadError: the file is absent, empty or of no supported format, or its extension and content disagree.
    """
    if not path.is_file():
        raise ReadError("absent", "listed, but there is no such file", "Restore the file or delete its line")
    if path.stat().st_size == 0:
        raise ReadError("zero bytes", "the file is empty (0 bytes)", "Copy it again from the source, or remove it")
    promised = image_format(path)
    if promised is None:
        ending = (
            f"files ending in {path.suffix!r} are" if path.suffix else "a file without an ending that is no DICOM is"
        )
        raise ReadError("unknown format", f"{ending} not read", f"Save the image as {SUPPORTED_FORMATS}")
    with open(path, "rb") as stream:  # unlike _read_head, this raises an error for a file that cannot be read
        found = _content_format(stream.read(_HEAD))
    if found is not None and found != promised:
        raise ReadError("wrong extension", f"named as {promised}, but its content is {found}", "Give it its true name")
    if found is None:
        raise ReadError("unreadable", f"its content is no {promised} image", "Export or copy it again, or remove it")
    return promised


def check_size(width: int, height: int, pixel_bytes: float) -> None:
    """Refuses an image that is too large by its header, before memory is allocated for it.

    Args:
        width: number of columns.
        height: number of rows.
        pixel_bytes: bytes per pixel, all samples together.

    Raises:
        ReadError: the image has more than :data:`MAX_PIXELS` pixels or :data:`MAX_BYTES` bytes.
    """
    pixels = width * height
    if pixels > MAX_PIXELS or pixels * pixel_bytes > MAX_BYTES:
        raise ReadError(
            "too large",
            f"its header says {width} x {height} pixels, {pixels * pixel_bytes / 1e6:,.0f} MB, where at most "
            f"{MAX_PIXELS // 10**6} million pixels and {MAX_BYTES // 10**6} MB are read",
            "Save it smaller, or copy it again where the header is wrong",
        )


@contextmanager
def room_for(width: int, height: int, pixel_bytes: float) -> Iterator[None]:
    """Context in which an image is decoded; only one thread at a time decodes a large image.

    The arguments and errors are those of :func:`check_size`.
    """
    check_size(width, height, pixel_bytes)
    with _one_large if width * height > _LARGE else nullcontext():
        yield
