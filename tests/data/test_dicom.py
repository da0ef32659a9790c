# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, HTJ2KLossless

from bundle.data.pixels import ROBUST_PERCENTILES
from bundle.data.readers import ReadError, decode, dicom_patient_id

DicomWriter = Callable[..., Any]

#: Tables that take 12 bits to 8, and to 12: dark grey becomes darker.
TO_8 = (np.arange(4096) ** 2 / 4095**2 * 255).astype(np.uint16)
TO_12 = (np.arange(4096) ** 2 / 4095).astype(np.uint16)

WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}

COMPRESSED = ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless"]


def _robust(pixels: NDArray[Any]) -> NDArray[np.float64]:
    low, high = np.percentile(pixels, ROBUST_PERCENTILES)
    return np.clip((pixels.astype(float) - low) / (high - low), 0, 1)


@pytest.fixture(scope="module")
def grey() -> NDArray[np.uint16]:
    """12 bits, [H, W]: smooth, with noise, nothing like its mirror images."""
    y, x = np.mgrid[:48, :64]
    smooth = (np.sin(x / 9) + np.cos(y / 7) + x / 64 + 1) / 4 * 3800 + 100
    return (smooth + np.random.default_rng(0).normal(0, 20, smooth.shape)).clip(0, 4095).astype(np.uint16)


@pytest.fixture(scope="module")
def colour(grey: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """12 bits, [H, W, 3]."""
    return np.stack([grey, grey // 2, 4095 - grey], axis=-1)


@pytest.fixture
def write_colour(write_dicom: DicomWriter) -> DicomWriter:
    """Returns a function that writes colour pixels [H, W, 3] as they are stored."""

    def write(path: Path, pixels: NDArray[Any], photometric: str = "RGB", **elements: Any) -> Any:
        dataset = write_dicom(path, pixels[..., 0], photometric)
        dataset.SamplesPerPixel, dataset.PlanarConfiguration = 3, 0
        for name, value in elements.items():
            setattr(dataset, name, value)
        stored = np.moveaxis(pixels, -1, 0) if dataset.PlanarConfiguration else pixels
        if photometric == "YBR_FULL_422":
            pairs = pixels.reshape(pixels.shape[0], -1, 2, 3)
            stored = np.stack([pairs[..., 0, 0], pairs[..., 1, 0], pairs[..., 0, 1], pairs[..., 0, 2]], axis=-1)
        dataset.PixelData = np.ascontiguousarray(stored).tobytes()
        dataset.save_as(path)
        return dataset

    return write


def _compress(path: Path, syntax: str) -> None:
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def _lut(entries: Any, descriptor: list[int], vr: str = "OW", descriptor_vr: str = "US") -> list[Dataset]:
    table = Dataset()
    table.add_new("LUTDescriptor", descriptor_vr, descriptor)
    table.add_new("LUTData", vr, entries)
    return [table]


def _refused(path: Path, channels: int = 1) -> ReadError:
    with pytest.raises(ReadError) as caught:
        decode(path, channels)
    assert "\n" not in str(caught.value)
    return caught.value


def _read(path: Path) -> NDArray[np.float32]:
    return decode(path, 1)[0]


@pytest.mark.parametrize("syntax", COMPRESSED)
@pytest.mark.parametrize("sort", ["12 bits", "signed", "8 bits"])
def test_lossless_compression(
    tmp_path: Path, grey: NDArray[np.uint16], write_dicom: DicomWriter, syntax: str, sort: str
) -> None:
    pixels = {"12 bits": grey, "signed": grey.astype(np.int16) - 2000, "8 bits": (grey // 16).astype(np.uint8)}[sort]
    write_dicom(tmp_path / "a.dcm", pixels, **WINDOW)
    expected = decode(tmp_path / "a.dcm", 1) if sort != "8 bits" else None
    if sort == "8 bits":
        write_dicom(tmp_path / "a.dcm", pixels, WindowCenter=128, WindowWidth=256)
        expected = decode(tmp_path / "a.dcm", 1)
    _compress(tmp_path / "a.dcm", syntax)
    np.testing.assert_array_equal(decode(tmp_path / "a.dcm", 1), expected)


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_lossless_compression_of_deep_colour(
    tmp_path: Path, colour: NDArray[np.uint16], write_colour: DicomWriter, syntax: str
) -> None:
    write_colour(tmp_path / "a.dcm", colour)
    _compress(tmp_path / "a.dcm", syntax)
    np.testing.assert_allclose(decode(tmp_path / "a.dcm", 3), np.moveaxis(_robust(colour), -1, 0), atol=1e-5)


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_compressed_pixels_that_are_cut_off(
    tmp_path: Path, grey: NDArray[np.uint16], write_dicom: DicomWriter, syntax: str
) -> None:
    path = tmp_path / "a.dcm"
    write_dicom(path, grey)
    _compress(path, syntax)
    content, dataset = path.read_bytes(), pydicom.dcmread(path)
    for share in (0.6, 0.9, 0.99):
        path.write_bytes(content[: int(len(content) * share)])
        assert _refused(path).kind == "truncated"
    stream = next(generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = encapsulate([stream[: len(stream) // 4 * 2]])  # the file is whole, its stream is not
    dataset.save_as(path)
    error = _refused(path)
    assert (error.kind, "damaged or cut off" in error.message) == ("unreadable", True)
    assert "plugin" not in error.message


@pytest.mark.parametrize("syntax", [name for name in COMPRESSED if name != "RLELossless"])
def test_a_stream_of_another_size_than_the_header(
    tmp_path: Path, grey: NDArray[np.uint16], write_dicom: DicomWriter, syntax: str
) -> None:
    write_dicom(tmp_path / "a.dcm", grey)
    _compress(tmp_path / "a.dcm", syntax)
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    dataset.Rows = 40
    dataset.save_as(tmp_path / "a.dcm")
    error = _refused(tmp_path / "a.dcm")
    assert error.kind == "wrong tag"
    assert "say 64 x 40, its compressed pixels 64 x 48" in error.message


def test_compression_that_is_not_read(tmp_path: Path, grey: NDArray[np.uint16], write_dicom: DicomWriter) -> None:
    write_dicom(tmp_path / "a.dcm", grey)
    _compress(tmp_path / "a.dcm", "JPEGExtendedProcess2_4")  # 12 bits, lossy
    error = _refused(tmp_path / "a.dcm")
    assert (error.kind, "Save it uncompressed" in error.cure) == ("unknown format", True)
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    dataset.file_meta.TransferSyntaxUID = HTJ2KLossless
    dataset.save_as(tmp_path / "a.dcm")
    error = _refused(tmp_path / "a.dcm")
    assert (error.kind, "High-Throughput JPEG 2000" in error.message) == ("unknown format", True)


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("bits", [12, 16])
def test_rgb_of_16_bits_keeps_all_levels(
    tmp_path: Path, colour: NDArray[np.uint16], write_colour: DicomWriter, planar: int, bits: int
) -> None:
    elements = {"PlanarConfiguration": planar, "BitsStored": bits, "HighBit": bits - 1}
    write_colour(tmp_path / "a.dcm", colour, **elements)
    expected = _robust(colour)
    np.testing.assert_allclose(decode(tmp_path / "a.dcm", 3), np.moveaxis(expected, -1, 0), atol=1e-5)
    np.testing.assert_allclose(_read(tmp_path / "a.dcm"), expected @ [0.299, 0.587, 0.114], atol=1e-5)


@pytest.mark.parametrize("allocated", ["u1", "<u2"])
@pytest.mark.parametrize("bits", [8, 7])
def test_rgb_of_few_bits_is_scaled_by_the_bits_that_are_stored(
    tmp_path: Path, colour: NDArray[np.uint16], write_colour: DicomWriter, allocated: str, bits: int
) -> None:
    few = colour >> (12 - bits)
    write_colour(tmp_path / "a.dcm", few.astype(allocated), BitsStored=bits, HighBit=bits - 1)
    expected = np.moveaxis(few / (2**bits - 1), -1, 0)
    np.testing.assert_allclose(decode(tmp_path / "a.dcm", 3), expected, atol=0 if bits == 8 else 0.5 / 255, rtol=1e-6)


@pytest.mark.parametrize("syntax", ["", *COMPRESSED])
@pytest.mark.parametrize("bits", [8, 10])
def test_colour_of_more_bits_than_the_header_says_is_refused_and_not_wrapped(
    tmp_path: Path, colour: NDArray[np.uint16], write_colour: DicomWriter, syntax: str, bits: int
) -> None:
    write_colour(tmp_path / "a.dcm", colour)
    if syntax:
        _compress(tmp_path / "a.dcm", syntax)
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.save_as(tmp_path / "a.dcm")
    error = _refused(tmp_path / "a.dcm", 3)
    assert error.kind == "wrong tag"
    assert f"BitsStored (0028,0101) is {bits}, and pixels have values from" in error.message


@pytest.mark.parametrize("photometric", ["YBR_FULL", "YBR_FULL_422"])
@pytest.mark.parametrize(("bits", "allocated"), [(8, "u1"), (8, "<u2"), (12, "<u2")])
def test_ybr_becomes_rgb(
    tmp_path: Path, grey: NDArray[np.uint16], write_colour: DicomWriter, photometric: str, bits: int, allocated: str
) -> None:
    # Pairs of pixels are of one colour, so that 4:2:2 loses nothing.
    wide = np.repeat(grey[:, ::2], 2, axis=1) >> (12 - bits)
    full, half = 2**bits - 1, 2 ** (bits - 1)
    rgb = np.stack([wide, wide // 2, full - wide], axis=-1).astype(float)
    y = rgb @ [0.299, 0.587, 0.114]
    stored = np.stack([y, (rgb[..., 2] - y) / 1.772 + half, (rgb[..., 0] - y) / 1.402 + half], axis=-1)
    pixels = np.rint(stored).clip(0, full).astype(allocated)
    write_colour(tmp_path / "a.dcm", pixels, photometric, BitsStored=bits, HighBit=bits - 1)
    expected = rgb / 255 if bits == 8 else _robust(rgb)
    np.testing.assert_allclose(decode(tmp_path / "a.dcm", 3), np.moveaxis(expected, -1, 0), atol=3 / full)


@pytest.mark.parametrize(("scale", "bits", "dtype"), [(257, 16, "<u2"), (1, 8, "<u2"), (1, 8, "u1")])
@pytest.mark.parametrize("first", [0, 1000])
def test_palette_colour(
    tmp_path: Path, grey: NDArray[np.uint16], write_dicom: DicomWriter, scale: int, bits: int, dtype: str, first: int
) -> None:
    levels = np.arange(256)
    palette = {"Red": levels, "Green": 255 - levels, "Blue": levels // 2}
    elements: dict[str, Any] = {}
    for name, entries in palette.items():
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [256, first, bits]
        elements[f"{name}PaletteColorLookupTableData"] = (entries * scale).astype(dtype).tobytes()
    indices = grey // 16
    write_dicom(tmp_path / "a.dcm", (indices + first).astype(np.uint16), "PALETTE COLOR", **elements)
    expected = np.stack([entries[indices] / 255 for entries in palette.values()])
    np.testing.assert_allclose(decode(tmp_path / "a.dcm", 3, strict=True), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("table", "lut"),
    [
        pytest.param(TO_8, _lut(TO_8.tobytes(), [4096, 0, 8]), id="8 bits in words"),
        pytest.param(TO_8, _lut(TO_8.astype("u1").tobytes(), [4096, 0, 8]), id="8 bits in bytes"),
        pytest.param(TO_8, _lut(TO_8.tolist(), [4096, 0, 8], "US"), id="8 bits, US"),
        pytest.param(TO_8, _lut(TO_8.astype("u1").view("<u2").tolist(), [4096, 0, 8], "US"), id="two in a word"),
        pytest.param(TO_8, _lut(TO_8.tobytes(), [4096, 0, 16]), id="says 16 bits, holds 8"),
        pytest.param(TO_12, _lut(TO_12.tobytes(), [4096, 0, 16]), id="says 16 bits, holds 12"),
        pytest.param(TO_12, _lut(TO_12.tobytes(), [4096, 0, 8]), id="says 8 bits, holds 12"),
        pytest.param(TO_12, _lut(TO_12.tobytes(), [4096, 0, 12], "UN"), id="unknown VR"),
        pytest.param(TO_12, _lut(np.r_[TO_12, [4095] * 61440].astype("<u2").tobytes(), [0, 0, 16]), id="65536 entries"),
    ],
)
def test_voi_lut_is_scaled_by_what_it_holds(
    tmp_path: Path, grey: NDArray[np.uint16], write_dicom: DicomWriter, table: NDArray[np.uint16], lut: list[Dataset]
) -> None:
    write_dicom(tmp_path / "a.dcm", grey, BitsStored=12, HighBit=11, VOILUTSequence=lut)
    white = 255 if table is TO_8 else 4095
    np.testing.assert_allclose(_read(tmp_path / "a.dcm"), table[grey] / white, atol=1e-6)


@pytest.mark.parametrize(
    "lut",
    [
        pytest.param(_lut(TO_12.tobytes(), [4096, -2048, 12], descriptor_vr="SS"), id="signed"),
        pytest.param(_lut(TO_12.tobytes(), [4096, 65536 - 2048, 12]), id="signed, written as unsigned"),
    ],
)
@pytest.mark.parametrize("rescale", [False, True])
def test_voi_lut_from_a_negative_value_on(
    tmp_path: Path, grey: NDArray[np.uint16], write_dicom: DicomWriter, lut: list[Dataset], rescale: bool
) -> None:
    elements: dict[str, Any] = {"RescaleSlope": 1, "RescaleIntercept": -2048} if rescale else {}
    pixels = grey if rescale else grey.astype(np.int16) - 2048
    write_dicom(tmp_path / "a.dcm", pixels, VOILUTSequence=lut, **elements)
    np.testing.assert_allclose(_read(tmp_path / "a.dcm"), TO_12[grey] / 4095, atol=1e-6)


def test_voi_lut_of_big_endian_files(tmp_path: Path, grey: NDArray[np.uint16], write_dicom: DicomWriter) -> None:
    dataset = write_dicom(tmp_path / "a.dcm", grey)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    dataset.VOILUTSequence = _lut(TO_12.astype(">u2").tobytes(), [4096, 0, 12])
    dataset.PixelData = grey.astype(">u2").tobytes()
    pydicom.dcmwrite(tmp_path / "a.dcm", dataset, implicit_vr=False, little_endian=False, enforce_file_format=True)
    np.testing.assert_allclose(_read(tmp_path / "a.dcm"), TO_12[grey] / 4095, atol=1e-6)


def test_modality_lut_before_a_window(tmp_path: Path, grey: NDArray[np.uint16], write_dicom: DicomWriter) -> None:
    lut = _lut(TO_12.tolist(), [4096, 0, 12], "US")
    write_dicom(tmp_path / "a.dcm", grey, ModalityLUTSequence=lut, WindowCenter=2048, WindowWidth=4096)
    np.testing.assert_allclose(_read(tmp_path / "a.dcm"), TO_12[grey] / 4095, atol=1e-6)


def test_luts_that_hold_less_than_they_say(tmp_path: Path, grey: NDArray[np.uint16], write_dicom: DicomWriter) -> None:
    write_dicom(tmp_path / "a.dcm", grey, VOILUTSequence=_lut(TO_12[:100].tobytes(), [4096, 0, 12]))
    error = _refused(tmp_path / "a.dcm")
    assert error.kind == "wrong tag"
    assert "LUTData (0028,3006)" in error.message
    assert "LUTDescriptor (0028,3002) says 4096" in error.message


@pytest.mark.parametrize(
    "elements",
    [
        {"WindowCenter": None, "WindowWidth": None},
        {"WindowCenter": "", "WindowWidth": 40},
        {"RescaleSlope": None, "RescaleIntercept": None},
        {"RescaleSlope": None, "RescaleIntercept": -1024},
        {"RescaleSlope": 2, "RescaleIntercept": ""},
        {"VOILUTSequence": []},
        {"VOILUTSequence": _lut(b"", [4096, 0, 12])},
        {"ModalityLUTSequence": []},
        {"PixelPaddingValue": None},
        {"PixelPaddingValue": None, "PixelPaddingRangeLimit": None},
        {"NumberOfFrames": None},
        {"PixelSpacing": None, "PixelAspectRatio": "", "ImagerPixelSpacing": None},
        {"PatientOrientation": None},
        {"PatientOrientation": ["", ""]},
    ],
)
def test_an_empty_tag_is_an_absent_tag(
    tmp_path: Path, grey: NDArray[np.uint16], write_dicom: DicomWriter, elements: dict[str, Any]
) -> None:
    write_dicom(tmp_path / "a.dcm", grey, **elements)
    np.testing.assert_allclose(_read(tmp_path / "a.dcm"), _robust(grey), atol=1e-6)


def test_an_empty_function_of_the_window_is_linear(
    tmp_path: Path, grey: NDArray[np.uint16], write_dicom: DicomWriter
) -> None:
    write_dicom(tmp_path / "a.dcm", grey, VOILUTFunction="", **WINDOW)
    np.testing.assert_allclose(_read(tmp_path / "a.dcm"), grey / 4095, atol=1e-6)


@pytest.mark.parametrize(
    ("elements", "kind", "tags"),
    [
        ({"RescaleSlope": 0, **WINDOW}, "wrong tag", ["RescaleSlope (0028,1053)"]),
        ({"RescaleSlope": 0}, "wrong tag", ["RescaleSlope (0028,1053)"]),
        ({"WindowCenter": 100, "WindowWidth": 0}, "window", ["WindowWidth (0028,1051)"]),
        ({"WindowCenter": 100, "WindowWidth": -40}, "window", ["WindowWidth (0028,1051)"]),
        ({"WindowCenter": 2048, "WindowWidth": 1}, "window", ["WindowWidth (0028,1051)"]),
        ({"WindowCenter": 128, "WindowWidth": 256}, "window", ["WindowCenter (0028,1050)", "WindowWidth (0028,1051)"]),
        ({"WindowCenter": 9e4, "WindowWidth": 10}, "blank", ["WindowCenter (0028,1050)", "WindowWidth (0028,1051)"]),
        ({"WindowCenter": 0, "WindowWidth": 4e8}, "blank", ["WindowCenter (0028,1050)", "WindowWidth (0028,1051)"]),
        ({"VOILUTFunction": "CUBIC", **WINDOW}, "wrong tag", ["VOILUTFunction (0028,1056)"]),
        ({"VOILUTSequence": _lut(TO_8[:256].tobytes(), [256, 60000, 8])}, "blank", ["VOILUTSequence (0028,3010)"]),
        ({"ModalityLUTSequence": _lut(bytes(512), [256, 0, 16])}, "blank", ["ModalityLUTSequence (0028,3000)"]),
        ({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 65535}, "blank", ["PixelPaddingValue (0028,0120)"]),
        ({"PixelSpacing": [0, 0.1]}, "wrong tag", ["PixelSpacing (0028,0030)"]),
        ({"PixelAspectRatio": ["1"]}, "wrong tag", ["PixelAspectRatio (0028,0034)"]),
        ({"PatientOrientation": ["L", "R"]}, "wrong tag", ["PatientOrientation (0020,0020)"]),
        ({"PatientOrientation": "LF"}, "wrong tag", ["PatientOrientation (0020,0020)"]),
    ],
)
def test_a_tag_that_spoils_the_pixels_is_named_and_the_image_not_condemned(
    tmp_path: Path,
    grey: NDArray[np.uint16],
    write_dicom: DicomWriter,
    elements: dict[str, Any],
    kind: str,
    tags: list[str],
) -> None:
    write_dicom(tmp_path / "a.dcm", grey, **elements)
    error = _refused(tmp_path / "a.dcm")
    assert error.kind == kind
    assert [tag for tag in tags if tag not in error.message] == []
    assert error.cure.startswith("Correct")
    assert "emove" not in error.cure


def test_numbers_that_are_none(tmp_path: Path, grey: NDArray[np.uint16], write_dicom: DicomWriter) -> None:
    write_dicom(tmp_path / "a.dcm", grey, RescaleSlope=1.5, RescaleIntercept=0)
    content = (tmp_path / "a.dcm").read_bytes()
    for text in (b"a,b ", b"inf ", b"nan "):
        (tmp_path / "b.dcm").write_bytes(content.replace(b"DS\x04\x001.5 ", b"DS\x04\x00" + text))
        error = _refused(tmp_path / "b.dcm")
        assert (error.kind, "RescaleSlope (0028,1053)" in error.message) == ("wrong tag", True)


def test_windows_made_for_display_are_taken(tmp_path: Path, grey: NDArray[np.uint16], write_dicom: DicomWriter) -> None:
    framed = np.zeros((160, 200), np.uint16)  # collimated: four fifths of the image are black
    framed[50:98, 60:124] = grey + 200
    framed[:50, 60:124] = 4095
    for pixels, centre, width in ((framed, 2000, 3000), (grey, 2048, 2000), (grey, 1000, 2000)):
        write_dicom(tmp_path / "a.dcm", pixels, WindowCenter=centre, WindowWidth=width)
        expected = np.clip((pixels - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
        np.testing.assert_allclose(_read(tmp_path / "a.dcm"), expected, atol=1e-6)


@pytest.mark.parametrize("depth", [10, 12, 14, 16])
def test_windows_in_8_bit_units_are_refused(tmp_path: Path, write_dicom: DicomWriter, depth: int) -> None:
    noise = np.random.default_rng(0).integers(0, 2**depth, (64, 64)).astype(np.uint16)
    write_dicom(tmp_path / "a.dcm", noise, WindowCenter=128, WindowWidth=256)
    error = _refused(tmp_path / "a.dcm")
    assert error.kind == ("window" if depth < 16 else "blank")  # of 16 bits hardly a pixel is left
    assert "WindowCenter (0028,1050) and WindowWidth (0028,1051)" in error.message
    assert error.cure.startswith("Correct")


# 2096 is -2000 in 12 bits, 63536 in 16.
PADDINGS = [(-2000, "SS", 12), (-2000, "SS", 16), (63536, "US", 12), (63536, "US", 16), (2096, "US", 12)]


@pytest.mark.parametrize(("value", "vr", "bits"), PADDINGS)
def test_padding_below_zero(
    tmp_path: Path, grey: NDArray[np.uint16], write_dicom: DicomWriter, value: int, vr: str, bits: int
) -> None:
    pixels = grey.astype(np.int16) // 2 - 1000
    pixels[-8:] = -2000
    dataset = write_dicom(tmp_path / "a.dcm", pixels, "MONOCHROME1", BitsStored=bits, HighBit=bits - 1)
    dataset.add_new(tag_for_keyword("PixelPaddingValue"), vr, value)
    dataset.save_as(tmp_path / "a.dcm")
    image = _read(tmp_path / "a.dcm")
    assert (image[-8:] == 0).all()
    np.testing.assert_allclose(image[:-8], 1 - _robust(pixels[:-8]), atol=1e-6)


def test_padding_with_a_sign_that_the_pixels_have_not(
    tmp_path: Path, grey: NDArray[np.uint16], write_dicom: DicomWriter
) -> None:
    pixels = grey.copy()
    pixels[-8:] = 65535
    dataset = write_dicom(tmp_path / "a.dcm", pixels)
    dataset.add_new(tag_for_keyword("PixelPaddingValue"), "SS", -1)
    dataset.save_as(tmp_path / "a.dcm")
    image = _read(tmp_path / "a.dcm")
    assert (image[-8:] == 0).all()
    np.testing.assert_allclose(image[:-8], _robust(pixels[:-8]), atol=1e-6)


@pytest.mark.parametrize(
    "elements",
    [
        {"PixelAspectRatio": [2, 1]},
        {"PixelSpacing": [0.2, 0.1]},
        {"ImagerPixelSpacing": [0.2, 0.1]},
        {"NominalScannedPixelSpacing": [0.2, 0.1]},
        {"PixelSpacing": None, "ImagerPixelSpacing": [0.2, 0.1]},
    ],
)
def test_pixels_become_square(
    tmp_path: Path, grey: NDArray[np.uint16], write_dicom: DicomWriter, elements: dict[str, Any]
) -> None:
    whole = np.repeat(np.repeat(grey, 2, axis=0), 2, axis=1)  # 96 x 128
    write_dicom(tmp_path / "a.dcm", whole[::2], **elements, **WINDOW)
    image = _read(tmp_path / "a.dcm")
    assert image.shape == (96, 128)
    np.testing.assert_allclose(image[2:-2], whole[2:-2] / 4095, atol=0.12)


def test_pixels_that_are_square_keep_every_bit(
    tmp_path: Path, grey: NDArray[np.uint16], write_dicom: DicomWriter
) -> None:
    write_dicom(tmp_path / "a.dcm", grey)
    write_dicom(tmp_path / "b.dcm", grey, PixelSpacing=[0.143, 0.143], PixelAspectRatio=[1, 1])
    np.testing.assert_array_equal(_read(tmp_path / "a.dcm"), _read(tmp_path / "b.dcm"))


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (["L", "F"], lambda upright: upright),
        (["R", "F"], lambda upright: upright[:, ::-1]),
        (["L", "H"], lambda upright: upright[::-1]),
        (["R", "H"], lambda upright: upright[::-1, ::-1]),
        (["F", "L"], lambda upright: upright.T),
        (["H", "R"], lambda upright: upright[::-1, ::-1].T),
        (["F", "R"], lambda upright: upright[:, ::-1].T),
        (["LF", "FR"], lambda upright: upright),
        (["A", "F"], lambda upright: upright),
        (["P", "F"], lambda upright: upright),
        (["A", "H"], lambda upright: upright[::-1]),
        (["F", "P"], lambda upright: upright.T),
        (["R", "P"], lambda upright: upright[:, ::-1]),
        (["A", "L"], lambda upright: upright[::-1].T),
    ],
)
def test_images_are_turned_upright(
    tmp_path: Path,
    grey: NDArray[np.uint16],
    write_dicom: DicomWriter,
    orientation: list[str],
    stored: Callable[[NDArray[Any]], NDArray[Any]],
) -> None:
    write_dicom(tmp_path / "a.dcm", np.ascontiguousarray(stored(grey)), PatientOrientation=orientation, **WINDOW)
    np.testing.assert_allclose(_read(tmp_path / "a.dcm"), grey / 4095, atol=1e-6)


def test_mammograms_are_read_as_they_are(tmp_path: Path, grey: NDArray[np.uint16], write_dicom: DicomWriter) -> None:
    write_dicom(tmp_path / "a.dcm", grey, Modality="MG", PatientOrientation=["A", "R"], **WINDOW)
    np.testing.assert_allclose(_read(tmp_path / "a.dcm"), grey / 4095, atol=1e-6)


def test_headers_that_claim_too_much(tmp_path: Path, grey: NDArray[np.uint16], write_dicom: DicomWriter) -> None:
    dataset = write_dicom(tmp_path / "a.dcm", grey)
    dataset.Rows = dataset.Columns = 65535
    dataset.save_as(tmp_path / "a.dcm")
    error = _refused(tmp_path / "a.dcm")
    assert (error.kind, "65535 x 65535 pixels" in error.message) == ("too large", True)
    assert "at most 100 million" in error.message


def test_a_deflated_data_set_is_bounded_before_it_is_inflated(
    tmp_path: Path, grey: NDArray[np.uint16], write_dicom: DicomWriter
) -> None:
    path = tmp_path / "a.dcm"
    dataset = write_dicom(path, grey, PatientID="17")
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    np.testing.assert_allclose(_read(path), _robust(grey), atol=1e-6)
    assert dicom_patient_id(path) == "17"
    content = path.read_bytes()
    start = 144 + struct.unpack_from("<I", content, 140)[0]
    body = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content[start:])
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    parts = [packer.compress(body[:-8]), *(packer.compress(bytes(2**24)) for _ in range(24)), packer.flush()]
    path.write_bytes(content[:start] + b"".join(parts))
    assert path.stat().st_size < 2**20
    error = _refused(path)
    assert (error.kind, "deflated" in error.message) == ("too large", True)
    assert dicom_patient_id(path) is None


@pytest.mark.parametrize("keyword", ["Rows", "BitsAllocated", "BitsStored", "PhotometricInterpretation"])
def test_a_tag_that_is_missing_is_named(
    tmp_path: Path, grey: NDArray[np.uint16], write_dicom: DicomWriter, keyword: str
) -> None:
    dataset = write_dicom(tmp_path / "a.dcm", grey)
    delattr(dataset, keyword)
    dataset.save_as(tmp_path / "a.dcm")
    error = _refused(tmp_path / "a.dcm")
    assert (error.kind, f"without the tag {keyword} (" in error.message) == ("unreadable", True)


def test_lossy_jpeg_is_decoded_as_jpeg_files_are(
    tmp_path: Path, grey: NDArray[np.uint16], write_dicom: DicomWriter
) -> None:
    pixels = (grey // 16).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=90)
    dataset = write_dicom(tmp_path / "a.dcm", pixels)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    dataset.PixelData = encapsulate([(tmp_path / "a.jpg").read_bytes()])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(tmp_path / "a.dcm")
    np.testing.assert_array_equal(decode(tmp_path / "a.dcm", 1), decode(tmp_path / "a.jpg", 1))
