# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""DICOM images: from stored values through rescale and window to black is 0 and white is 1, upright."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_fragments
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.pixels import apply_color_lut, get_decoder, pixel_array
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

from bundle.data.formats import MAX_BYTES, ReadError, is_dicom, room_for
from bundle.data.pixels import (
    check_pixels,
    eight_bits,
    full_scale,
    one_channel,
    percentiles,
    robust_scale,
    square_pixels,
)

__all__ = ["MAX_LOST", "dicom_patient_id", "read_dicom"]

#: Share of the pixels between an image's own black and white that a window may turn plain black or white. What lies at
#: the ends anyway (background, collimated borders, burned-in text) does not count. Windows made for display cost an
#: anatomy less than half of its pixels; one in 8-bit units on 12-bit pixels costs nine tenths or more.
MAX_LOST = 0.7

#: An image's own black and white reach this share of its robust range inwards from the ends.
_PLAIN = 0.05

#: Outputs within this distance of 0 or 1 are plain black or white: half a step of eight bits.
_SATURATED = 0.5 / 255

#: Largest file, and largest data set once inflated, in bytes: a picture and what may be said about it.
_MAX_FILE = MAX_BYTES + 2**26

_UNCOMPRESS = "Save it uncompressed (Explicit VR Little Endian)"

#: What Pillow decodes as it does JPEG files, and without printing what it finds wrong; the other decoder for the rest.
_PILLOW_FIRST = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEG2000Lossless, JPEG2000)

_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT")

#: Tags of the physical size of a pixel as (height, width), in the order in which they are asked.
_ASPECT_TAGS = ("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")

#: The first markers of a JPEG 2000 stream: its start and its size.
_JPEG_2000 = b"\xff\x4f\xff\x51"

#: Opposite directions in the patient, the one that an upright picture shows right or at the bottom first.
_AXES = ("LR", "FH", "PA")


def _name(keyword: str) -> str:
    """Returns how messages call an element: ``WindowWidth (0028,1051)``."""
    tag = tag_for_keyword(keyword) or 0
    return f"{keyword} ({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _names(*keywords: str) -> str:
    return " and ".join(_name(keyword) for keyword in keywords)


def _wrong(keyword: str, message: str) -> ReadError:
    return ReadError("wrong tag", f"the tag {_name(keyword)} {message}", f"Correct or delete the tag {keyword}")


def _lacks(keyword: str) -> ReadError:
    return ReadError("unreadable", f"DICOM without the tag {_name(keyword)}", "Export it again with that tag")


def _values(dataset: Dataset, keyword: str) -> list[Any]:
    """Returns an element's values; none for an absent or empty element."""
    try:
        value = dataset.get(keyword)
    except Exception as error:  # pydicom converts when it is asked, and has many errors for text that it cannot convert
        raise _wrong(keyword, "holds a value that DICOM does not allow there") from error
    values = [value] if isinstance(value, (str, bytes, int, float)) or value is None else list(value)
    return [] if values and values[0] in (None, "", b"") else values


def _numbers(dataset: Dataset, keyword: str) -> list[float]:
    """Returns an element's values as finite numbers; none for an absent or empty element."""
    values = _values(dataset, keyword)
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise _wrong(keyword, f"holds {str(values[0])[:40]!r}, which is no number") from error
    if not np.isfinite(numbers).all():
        raise _wrong(keyword, "holds a value that is not finite")
    return numbers


def _number(dataset: Dataset, keyword: str) -> float | None:
    """Returns an element's first value, or None for an absent or empty element."""
    numbers = _numbers(dataset, keyword)
    return numbers[0] if numbers else None


def _required(dataset: Dataset, keyword: str) -> int:
    number = _number(dataset, keyword)
    if number is None:
        raise _lacks(keyword)
    return int(number)


def dicom_patient_id(path: Path) -> str | None:
    """Returns the PatientID of a DICOM file, or None when there is none or the file is no readable DICOM."""
    try:
        if not is_dicom(path):
            return None
        _check_inflated(path)
        header = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=["PatientID"])
        return str(header.get("PatientID") or "").strip() or None
    except Exception:  # unreadable files are reported when their pixels are read
        return None


def _check_inflated(path: Path) -> None:
    """Refuses a deflated data set that inflates to more than :data:`_MAX_FILE`, without holding what it inflates to."""
    with open(path, "rb") as stream:
        read_preamble(stream, force=True)
        # The public function does not say where the data set begins.
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


def _read_header(path: Path) -> tuple[int, int, float]:
    """Returns (columns, rows, bytes of a pixel) before the pixels are read; refuses what holds no single picture."""
    _check_inflated(path)
    if path.stat().st_size > _MAX_FILE:
        raise ReadError(
            "too large",
            f"the file has {path.stat().st_size / 1e6:,.0f} MB, where at most {_MAX_FILE // 10**6} MB are read",
            "Save the picture as its own file",
        )
    # Files without a preamble are read only by force; what the file holds has been looked at before.
    with open(path, "rb") as stream:
        header = pydicom.dcmread(stream, force=True, stop_before_pixels=True)
        tag = stream.read(4)
    deflated = header.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
    if not deflated and tag not in (b"\xe0\x7f\x10\0", b"\x7f\xe0\0\x10"):
        message = "DICOM without pixel data (a report, a header, or a file that is cut off)"
        raise ReadError("unreadable", message, "Copy it again from the source, or remove it")
    frames = int(_number(header, "NumberOfFrames") or 1)
    if frames > 1:
        raise ReadError("3D volume", f"DICOM of {frames} frames", "Save the frame you mean as its own file")
    needed = ("Columns", "Rows", "SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation")
    columns, rows, samples, bits, *_ = (_required(header, keyword) for keyword in needed)
    if not _values(header, "PhotometricInterpretation"):
        raise _lacks("PhotometricInterpretation")
    return columns, rows, samples * bits / 8


def _load(path: Path) -> Dataset:
    """Returns a data set with pixels, whose transfer syntax is known and read."""
    dataset = pydicom.dcmread(path, force=True)
    if "PixelData" not in dataset:  # pydicom leaves out an element whose end it does not find
        message = "the file is cut off (its compressed pixels do not end)"
        raise ReadError("truncated", message, "Copy it again from the source")
    meta: FileMetaDataset = getattr(dataset, "file_meta", None) or FileMetaDataset()
    if not meta.get("TransferSyntaxUID"):
        if dataset["PixelData"].is_undefined_length:
            cure = "Export it again with its file meta information"
            name = _name("TransferSyntaxUID")
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
    """Refuses a JPEG stream that does not end, or is of another size than the header's.

    Decoders of JPEG 2000 draw what there is of a stream that is cut off, and say nothing; and a decoder takes memory
    for the size that the stream states.
    """
    # The first item, a table of offsets, stands before the fragments.
    start = 8 + int.from_bytes(dataset.PixelData[4:8], "little")
    stream = b"".join(generate_fragments(dataset.PixelData[start:]))
    found = _stream_header(stream)
    if found is None:
        return
    if stream.startswith(_JPEG_2000) and not stream.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise _damaged(dataset.file_meta.TransferSyntaxUID)
    width, height, bits = found
    if (width, height) != (dataset.Columns, dataset.Rows):
        tags = _names("Columns", "Rows")
        message = f"the tags {tags} say {dataset.Columns} x {dataset.Rows}, its compressed pixels {width} x {height}"
        raise ReadError("wrong tag", message, "Export it again")
    if bits > 8 and dataset.file_meta.TransferSyntaxUID == JPEGExtended12Bit:
        raise ReadError("unknown format", f"DICOM of lossy JPEG with {bits} bits, which is not read", _UNCOMPRESS)


def _stream_header(stream: bytes) -> tuple[int, int, int] | None:
    """Returns (width, height, bits) that the header of a JPEG, JPEG-LS or JPEG 2000 stream states, or None."""
    if stream.startswith(_JPEG_2000):  # ISO 15444-1, A.5.1: the picture's ends less its offsets
        right, bottom, left, top = struct.unpack_from(">4I", stream.ljust(43), 8)
        return right - left, bottom - top, (stream.ljust(43)[42] & 0x7F) + 1
    position = 2
    while stream[:2] == b"\xff\xd8" and position + 9 <= len(stream) and stream[position] == 0xFF:
        marker = stream[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):  # start of frame
            bits, height, width = struct.unpack_from(">BHH", stream, position + 4)
            return (width, height, bits) if height else None  # 0: the height follows the first scan
        else:
            position += 2 + struct.unpack_from(">H", stream, position + 2)[0]
    return None


def _pixels(dataset: Dataset, **options: Any) -> NDArray[Any]:
    """Returns the stored values; `options` are those of pydicom's `pixel_array`."""
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


def _table(dataset: Dataset, item: Dataset, descriptor: str, data: str) -> tuple[NDArray[np.uint16], int]:
    """Returns a lookup table's entries and the stored value that the first entry is for (DICOM PS3.3, C.11.1.1)."""
    order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
    head, content = _values(item, descriptor), _values(item, data)
    if head and isinstance(head[0], bytes):
        head = np.frombuffer(head[0], f"{order}u2").tolist()
    if len(head) != 3:
        raise _wrong(descriptor, "does not hold three numbers")
    # All three are read as unsigned or as signed, by a rule that many writers break.
    length, first = int(head[0]) % 2**16 or 2**16, int(head[1])
    if content and isinstance(content[0], bytes):
        narrow = len(content[0]) < 2 * length
        entries = np.frombuffer(content[0][: len(content[0]) // 2 * 2], "u1" if narrow else f"{order}u2")
    else:
        entries = (np.array(content, np.int64) % 2**16).astype(np.uint16)
        if len(entries) < length <= 2 * len(entries):  # two entries of eight bits in each word
            entries = entries.astype("<u2").view(np.uint8)
    if len(entries) < length:
        raise _wrong(data, f"has {len(entries)} entries, where {_name(descriptor)} says {length}")
    return entries[:length].astype(np.uint16), first


def _look_up(table: NDArray[np.uint16], first: int, values: NDArray[Any]) -> NDArray[np.uint16]:
    """Returns the entry for each value; values beyond the ends get the first or the last entry."""
    if first >= 2**15 and values.min() < 0:
        first -= 2**16  # a negative number written as unsigned
    elif first + len(table) <= 0 <= values.min():
        first += 2**16
    return table[np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)]


def _full(*tables: NDArray[np.uint16]) -> float:
    """Returns white: the largest number of as many bits as the largest entry has, eight at least.

    The declared number of bits is not asked: tables of 12 bits declare 16, and the other way round.
    """
    return 2.0 ** max(8, *(int(table.max()).bit_length() for table in tables)) - 1


def _padding(dataset: Dataset, raw: NDArray[Any]) -> NDArray[np.bool_]:
    """Returns where pixels are padding; its value may be written with the wrong sign."""
    ends = [_number(dataset, keyword) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if ends[0] is None:
        return np.zeros(raw.shape, bool)
    bits = int(_number(dataset, "BitsStored") or 8 * raw.dtype.itemsize)
    signed = np.issubdtype(raw.dtype, np.signedinteger)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    stored = sorted(
        end if low <= end <= high else low + (end - low) % 2**bits for end in (int(e) for e in ends if e is not None)
    )
    padding: NDArray[np.bool_] = (raw >= stored[0]) & (raw <= stored[-1])
    return padding


def _lut(dataset: Dataset, keyword: str) -> Dataset | None:
    """Returns the first lookup table of a sequence, or None where there is none or it is empty."""
    items = _values(dataset, keyword)
    return items[0] if items and _values(items[0], "LUTData") else None


def _rescale(dataset: Dataset, raw: NDArray[Any]) -> tuple[NDArray[Any], str]:
    """Applies the modality LUT, or rescale slope and intercept; returns the values and what may have spoilt them."""
    item = _lut(dataset, "ModalityLUTSequence")
    if item is not None:
        table, first = _table(dataset, item, "LUTDescriptor", "LUTData")
        return _look_up(table, first, raw), f"the tag {_name('ModalityLUTSequence')}"
    slope, intercept = _number(dataset, "RescaleSlope"), _number(dataset, "RescaleIntercept")
    if slope is None and intercept is None:
        return raw, ""
    if slope == 0:
        raise _wrong("RescaleSlope", "is 0, which makes all pixels equal")
    values = raw.astype(np.float64) * (1.0 if slope is None else slope) + (intercept or 0.0)
    return values, f"the tags {_names('RescaleSlope', 'RescaleIntercept')}"


def _window(dataset: Dataset, values: NDArray[Any]) -> tuple[NDArray[Any], str] | None:
    """Applies the first VOI LUT or else the first window; returns [0, 1] and the tags, or None where there is none."""
    item = _lut(dataset, "VOILUTSequence")
    if item is not None:
        table, first = _table(dataset, item, "LUTDescriptor", "LUTData")
        return _look_up(table, first, values) / _full(table), f"the tag {_name('VOILUTSequence')}"
    centre, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
    if centre is None or width is None:
        return None
    function = str((_values(dataset, "VOILUTFunction") or ["LINEAR"])[0]).strip().upper()
    if width <= 0 or (function == "LINEAR" and width < 1):
        raise ReadError(
            "window",
            f"the tag {_name('WindowWidth')} is {width:g}, which is no width of a window",
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
        raise _wrong("VOILUTFunction", f"names {function[:40]!r}, which is no function of a window")
    return np.clip(scaled, 0.0, 1.0), f"the tags {_names('WindowCenter', 'WindowWidth')}"


def _check_window(values: NDArray[Any], scaled: NDArray[Any], tags: str) -> None:
    """Refuses a window that turns more than :data:`MAX_LOST` of what it is for plain black or white.

    Args:
        values: [N], before the window, without padding.
        scaled: [N], after it.
        tags: what the window was read from.
    """
    low, high = percentiles(values)
    plain = _PLAIN * (high - low)
    inside = (values > low + plain) & (values < high - plain)
    lost = inside & ((scaled <= _SATURATED) | (scaled >= 1.0 - _SATURATED))
    # In an image of two greys nothing lies between them that could be lost.
    if inside.mean() > _PLAIN and lost.sum() > MAX_LOST * inside.sum():
        raise ReadError(
            "window",
            f"{tags} turn {lost.sum() / inside.sum():.0%} of the image plain black or white "
            f"(pixel values {low:g} to {high:g})",
            "Correct them to the units of the pixels, or delete them",
        )


def _upright(dataset: Dataset, image: NDArray[Any]) -> NDArray[Any]:
    """Turns an image by PatientOrientation: rows run to the patient's left, columns to the feet (PS3.3, C.7.6.1.1.1).

    Lateral images keep which way they look, axial ones have the back at the bottom; mammograms, whose views have
    directions of their own, are left alone.
    """
    values = [str(value).strip().upper() for value in _values(dataset, "PatientOrientation")]
    if not any(values) or str(dataset.get("Modality")) == "MG":
        return image
    # The first letter is the main direction: "FL" runs to the feet, and a little to the left.
    axes = [next((axis for axis in _AXES if value and value[0] in axis), "") for value in values]
    if len(axes) != 2 or "" in axes or axes[0] == axes[1]:
        shown = "\\".join(values)
        cure = "Correct the tag PatientOrientation, or delete it where the image is stored upright"
        message = f"the tag {_name('PatientOrientation')} is {shown[:40]!r}, from which upright cannot be told"
        raise ReadError("wrong tag", message, cure)
    ends = [value[0] for value in values]
    if axes[1] == "LR" or (axes[0] == "FH" and axes[1] == "PA"):
        image, ends, axes = np.swapaxes(image, 0, 1), ends[::-1], axes[::-1]
    if ends[0] == "R":
        image = image[:, ::-1]
    if ends[1] in ("H", "A"):
        image = image[::-1]
    return image


def _square(dataset: Dataset, image: NDArray[Any]) -> NDArray[Any]:
    for keyword in _ASPECT_TAGS:
        sides = _numbers(dataset, keyword)
        if len(sides) == 1:
            raise _wrong(keyword, "holds one number, where the height and the width of a pixel belong")
        if sides:
            return square_pixels(image, sides[0], sides[1], f"the tag {_name(keyword)}")
    return image


def _read_colour(dataset: Dataset, channels: int, strict: bool) -> NDArray[Any]:
    """Returns [H, W] or [H, W, 3] of a colour image; more than 8 bits have their own scale, as in PNG."""
    photometric = dataset.PhotometricInterpretation
    if photometric == "PALETTE COLOR":
        pixels, white = _palette(dataset)
        return one_channel(pixels / white, channels, strict)
    if photometric not in _COLOURS:
        raise _unknown_colours(photometric)
    bits = int(dataset.BitsStored)
    white = 2**bits - 1
    # pydicom converts YBR of 8 allocated bits alone; compressed pixels come out of their decoder as RGB.
    is_ybr = photometric in ("YBR_FULL", "YBR_FULL_422") and dataset.BitsAllocated > 8
    is_ybr = is_ybr and not dataset.file_meta.TransferSyntaxUID.is_encapsulated
    # All bits are asked for: those beyond BitsStored would be cut off, which turns bright pixels dark.
    pixels = _pixels(dataset, raw=is_ybr, bits_stored=dataset.BitsAllocated)
    if pixels.min() < 0 or pixels.max() > white:
        message = f"the tag {_name('BitsStored')} is {bits}, and pixels have values from {pixels.min()} to {pixels.max()}"
        raise ReadError("wrong tag", message, "Correct the tag BitsStored, or export it as PNG")
    if is_ybr:
        pixels = _to_rgb(pixels, bits)
    if bits > 8:
        return one_channel(robust_scale(pixels.astype(np.float64)), channels, strict)
    scaled = np.rint(np.clip(pixels, 0, white) * (255.0 / white)).astype(np.uint8)
    return eight_bits(Image.fromarray(scaled), channels, strict)


def _to_rgb(pixels: NDArray[Any], bits: int) -> NDArray[np.float64]:
    """Turns YBR_FULL [H, W, 3] of any depth into RGB (PS3.3, C.7.6.3.1.2)."""
    y, blue, red = np.moveaxis(pixels.astype(np.float64), -1, 0)
    blue, red = blue - 2.0 ** (bits - 1), red - 2.0 ** (bits - 1)
    return np.stack([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], axis=-1)


def _unknown_colours(photometric: str) -> ReadError:
    cure = "Export it as MONOCHROME2, RGB or PNG"
    return ReadError("unknown format", f"DICOM of the colour kind {photometric[:40]}", cure)


def _palette(dataset: Dataset) -> tuple[NDArray[Any], float]:
    """Returns the colours [H, W, 3] of a palette image, and their white."""
    raw = _pixels(dataset)
    if _values(dataset, "SegmentedRedPaletteColorLookupTableData"):
        length, first, bits = (int(number) for number in dataset.RedPaletteColorLookupTableDescriptor)
        if bits == 8 and (length or 2**16) > 2**8:
            raise ReadError("unknown format", "DICOM of a segmented palette of over 256 colours", "Export it as RGB")
        colours = apply_color_lut(np.arange(first, first + (length or 2**16)), dataset)[:, :3]
        tables = [np.ascontiguousarray(column, np.uint16) for column in colours.T]
        firsts = [first] * 3
    else:
        prefixes = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
        if not all(_values(dataset, f"{prefix}{part}") for prefix in prefixes for part in ("Descriptor", "Data")):
            raise ReadError("unreadable", "DICOM of palette colour without its palette", "Export it as RGB")
        pairs = [_table(dataset, dataset, f"{prefix}Descriptor", f"{prefix}Data") for prefix in prefixes]
        tables, firsts = [table for table, _ in pairs], [first for _, first in pairs]
    planes = [_look_up(table, first, raw) for table, first in zip(tables, firsts, strict=True)]
    return np.stack(planes, axis=-1), _full(*tables)


def _check_range(values: NDArray[Any], suspect: str = "") -> None:
    low, high = percentiles(values)
    if low == high:
        after = f" after {suspect}" if suspect else ""
        cure = f"Correct or delete {suspect}" if suspect else "Remove it"
        raise ReadError("blank", f"all but a few pixels have the value {low:g}{after}", cure)


def _read_grey(dataset: Dataset) -> tuple[NDArray[Any], str]:
    """Returns [H, W] of a MONOCHROME image, and the tags that would have spoilt it if it is blank."""
    raw = _pixels(dataset)
    padding = _padding(dataset, raw)
    if padding.all():
        raise ReadError(
            "blank",
            f"the tag {_name('PixelPaddingValue')} makes every pixel padding",
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
    # Padding is no tissue: black on every display, inverted or not.
    return np.where(padding, 0.0, scaled), suspect


def read_dicom(path: Path, channels: int, strict: bool) -> tuple[NDArray[Any], str]:
    """Reads a DICOM image of one frame.

    Args:
        path: the file.
        channels: 1 or 3; colour becomes luma where 1 are wanted.
        strict: whether colour is refused where one channel is wanted.

    Returns:
        (image [H, W] or [H, W, 3] with black 0 and white 1, what is suspected where it turns out blank).

    Raises:
        ReadError: no picture, several or too large ones, or a tag by which the pixels cannot be read rightly.
    """
    with room_for(*_read_header(path)):
        dataset = _load(path)
        suspect = ""
        if dataset.PhotometricInterpretation in ("MONOCHROME1", "MONOCHROME2"):
            image, suspect = _read_grey(dataset)
        else:
            image = _read_colour(dataset, channels, strict)
        return _upright(dataset, _square(dataset, image)).astype(np.float32), suspect
