# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Reads the stored pixels of a DICOM file; refuses files that are damaged, too large, or hold no or several images."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_fragments
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
)

from bundle.data.dicom.tags import absent_tag, required_number, tag_name, tag_names, tag_number, tag_values
from bundle.data.formats import MAX_BYTES, ReadError

__all__ = ["check_inflated", "load", "read_header", "stored_pixels"]

#: Largest file, and largest inflated data set, in bytes: the largest image and 64 MiB for other elements.
_MAX_FILE = MAX_BYTES + 2**26

_UNCOMPRESS = "Save it uncompressed (Explicit VR Little Endian)"

#: Transfer syntaxes that are decoded with Pillow first: as JPEG files are, and without messages printed by the decoder.
_PILLOW_FIRST = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEG2000Lossless, JPEG2000)

#: First markers of a JPEG 2000 stream: start of codestream (SOC) and image size (SIZ).
_JPEG_2000 = b"\xff\x4f\xff\x51"


def read_header(path: Path) -> tuple[int, int, float]:
    """Returns (columns, rows, bytes per pixel) without reading the pixels; refuses files that hold no single image."""
    check_inflated(path)
    if path.stat().st_size > _MAX_FILE:
        raise ReadError(
            "too large",
            f"the file has {path.stat().st_size / 1e6:,.0f} MB, where at most {_MAX_FILE // 10**6} MB are read",
            "Save the picture as its own file",
        )
    # force reads files without a preamble; that the content is DICOM has been checked before.
    with open(path, "rb") as stream:
        header = pydicom.dcmread(stream, force=True, stop_before_pixels=True)
        tag = stream.read(4)
    deflated = header.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
    if not deflated and tag not in (b"\xe0\x7f\x10\0", b"\x7f\xe0\0\x10"):
        message = "DICOM without pixel data (a report, a header, or a file that is cut off)"
        raise ReadError("unreadable", message, "Copy it again from the source, or remove it")
    frames = int(tag_number(header, "NumberOfFrames") or 1)
    if frames > 1:
        raise ReadError("3D volume", f"DICOM of {frames} frames", "Save the frame you mean as its own file")
    needed = ("Columns", "Rows", "SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation")
    columns, rows, samples, bits, *_ = (required_number(header, keyword) for keyword in needed)
    if not tag_values(header, "PhotometricInterpretation"):
        raise absent_tag("PhotometricInterpretation")
    return columns, rows, samples * bits / 8


def check_inflated(path: Path) -> None:
    """Refuses a deflated data set that inflates to more than :data:`_MAX_FILE`, without keeping it in memory."""
    with open(path, "rb") as stream:
        read_preamble(stream, force=True)
        # Unlike pydicom's public function, this one leaves the stream at the start of the data set.
        meta = _read_file_meta_info(stream)
        if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return
        inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while block := inflater.unconsumed_tail or stream.read(2**16):
            size += len(inflater.decompress(block, 2**20))
            if size > _MAX_FILE:
                raise ReadError(
                    "too large",
                    f"its deflated data set holds more than {_MAX_FILE // 10**6} MB, the most that is read",
                    "Save the picture as its own file, uncompressed",
                )
            if inflater.eof:
                return


def load(path: Path) -> Dataset:
    """Reads a data set with pixels and makes sure that its transfer syntax is set and can be decoded."""
    dataset = pydicom.dcmread(path, force=True)
    if "PixelData" not in dataset:  # pydicom omits an element whose end it does not find
        message = "the file is cut off (its compressed pixels do not end)"
        raise ReadError("truncated", message, "Copy it again from the source")
    meta: FileMetaDataset = getattr(dataset, "file_meta", None) or FileMetaDataset()
    if not meta.get("TransferSyntaxUID"):
        if dataset["PixelData"].is_undefined_length:
            cure = "Export it again with its file meta information"
            name = tag_name("TransferSyntaxUID")
            raise ReadError("unreadable", f"DICOM with compressed pixels and without the tag {name}", cure)
        implicit, little = dataset.original_encoding
        syntax = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else syntax
    dataset.file_meta = meta
    syntax = meta.TransferSyntaxUID
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise ReadError("unknown format", f"DICOM of the transfer syntax {syntax.name}, which is not read", _UNCOMPRESS)
    if syntax.is_encapsulated:
        _check_stream(dataset)
    return dataset


def _check_stream(dataset: Dataset) -> None:
    """Refuses a JPEG stream that is truncated or whose size differs from the DICOM header.

    JPEG 2000 decoders return a partial image for a truncated stream without an error, and every decoder allocates
    memory for the size that the stream states.
    """
    # The fragments follow the first item, the basic offset table.
    start = 8 + int.from_bytes(dataset.PixelData[4:8], "little")
    stream = b"".join(generate_fragments(dataset.PixelData[start:]))
    found = _stream_header(stream)
    if found is None:
        return
    if stream.startswith(_JPEG_2000) and not stream.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise _damaged(dataset.file_meta.TransferSyntaxUID)
    width, height, bits = found
    if (width, height) != (dataset.Columns, dataset.Rows):
        tags = tag_names("Columns", "Rows")
        message = f"the tags {tags} say {dataset.Columns} x {dataset.Rows}, its compressed pixels {width} x {height}"
        raise ReadError("wrong tag", message, "Export it again")
    if bits > 8 and dataset.file_meta.TransferSyntaxUID == JPEGExtended12Bit:
        raise ReadError("unknown format", f"DICOM of lossy JPEG with {bits} bits, which is not read", _UNCOMPRESS)


def _stream_header(stream: bytes) -> tuple[int, int, int] | None:
    """Returns (width, height, bits) from the header of a JPEG, JPEG-LS or JPEG 2000 stream, or None."""
    if stream.startswith(_JPEG_2000):  # ISO 15444-1, A.5.1: the size is the end of the image area minus its offset
        right, bottom, left, top = struct.unpack_from(">4I", stream.ljust(43), 8)
        return right - left, bottom - top, (stream.ljust(43)[42] & 0x7F) + 1
    position = 2
    while stream[:2] == b"\xff\xd8" and position + 9 <= len(stream) and stream[position] == 0xFF:
        marker = stream[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):  # start of frame
            bits, height, width = struct.unpack_from(">BHH", stream, position + 4)
            return (width, height, bits) if height else None  # 0 means that the height follows the first scan
        else:
            position += 2 + struct.unpack_from(">H", stream, position + 2)[0]
    return None


def stored_pixels(dataset: Dataset, **options: Any) -> NDArray[Any]:
    """Returns the stored values; `options` are passed to pydicom's `pixel_array`."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return pixel_array(dataset, **options)
    for plugin in ("pillow", "") if syntax in _PILLOW_FIRST else ("",):
        try:
            return pixel_array(dataset, decoding_plugin=plugin, **options)
        except RuntimeError as error:
            failure = error
    raise _damaged(syntax) from failure


def _damaged(syntax: UID) -> ReadError:
    cure = "Copy it again from the source, or export it uncompressed"
    return ReadError("unreadable", f"its pixels ({syntax.name}) are damaged or cut off", cure)
