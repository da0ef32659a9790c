# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset

from bundle.data.readers import ROBUST_PERCENTILES, ReadError, UprightReader, decode, dicom_patient_id

Drawing = Callable[..., NDArray[np.uint8]]
DicomWriter = Callable[..., Any]


def _robust(pixels: NDArray[Any]) -> NDArray[np.float64]:
    low, high = np.percentile(pixels, ROBUST_PERCENTILES)
    return np.clip((pixels - low) / (high - low), 0, 1)


def _kind(path: Path, channels: int = 1) -> str:
    with pytest.raises(ReadError) as caught:
        decode(path, channels)
    assert caught.value.cure
    return caught.value.kind


def test_png_of_8_bits(tmp_path: Path, draw: Drawing) -> None:
    Image.fromarray(draw()).save(tmp_path / "a.png")
    image = decode(tmp_path / "a.png", 1)
    assert image.dtype == np.float32
    np.testing.assert_allclose(image, draw()[None] / 255, atol=1e-6)


def test_grey_is_repeated_for_three_channels(tmp_path: Path, draw: Drawing) -> None:
    Image.fromarray(draw()).save(tmp_path / "a.png")
    image = decode(tmp_path / "a.png", 3)
    assert image.shape == (3, *draw().shape)
    assert (image == image[:1]).all()


def test_jpeg_of_8_bits(tmp_path: Path) -> None:
    smooth = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
    Image.fromarray(smooth).save(tmp_path / "a.jpeg", quality=95)
    np.testing.assert_allclose(decode(tmp_path / "a.jpeg", 1)[0], smooth / 255, atol=0.02)


def test_png_of_16_bits_has_its_own_scale(tmp_path: Path, draw: Drawing) -> None:
    pixels = draw().astype(np.uint16) * 16 + 1000  # 12 bits in a 16-bit file, as scanners write them
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_allclose(decode(tmp_path / "a.png", 1)[0], _robust(pixels), atol=1e-6)


def test_colour_becomes_luma_and_order_is_kept(tmp_path: Path, draw: Drawing) -> None:
    pixels: NDArray[np.uint8] = np.stack([draw(0), draw(1), draw(2)], axis=-1)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_allclose(decode(tmp_path / "a.png", 3), np.moveaxis(pixels, -1, 0) / 255, atol=1e-6)
    luma = pixels @ np.array([0.299, 0.587, 0.114]) / 255
    np.testing.assert_allclose(decode(tmp_path / "a.png", 1)[0], luma, atol=1.5 / 255)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGB", "RGBA", "CMYK"])
def test_other_modes_of_grey_pictures(tmp_path: Path, draw: Drawing, mode: str) -> None:
    black_and_white = Image.fromarray(np.where(draw() > 100, 255, 0).astype(np.uint8))
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    black_and_white.convert("RGB" if mode == "CMYK" else "L").convert(mode).save(path)
    for channels in (1, 3):
        image = decode(path, channels)
        np.testing.assert_allclose(image[0], np.asarray(black_and_white) / 255.0, atol=0.1)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_strictly_colour_is_no_grey_and_grey_no_colour(tmp_path: Path, draw: Drawing, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    grey = Image.fromarray(draw())
    coloured = Image.merge("RGB", [grey, Image.fromarray(draw(1)), Image.fromarray(draw(2) // 2)])
    coloured.convert(mode).save(path)
    assert decode(path, 3, strict=True).shape == (3, 40, 56)
    with pytest.raises(ReadError, match="is in colour, where the modality has one channel"):
        decode(path, 1, strict=True)
    grey.convert("RGB").convert(mode).save(path)
    assert decode(path, 1, strict=True).shape == (1, 40, 56)
    with pytest.raises(ReadError, match="shows no colour, where the modality has three channels"):
        decode(path, 3, strict=True)


def test_strictly_deep_images_are_grey(tmp_path: Path, draw: Drawing) -> None:
    Image.fromarray(draw().astype(np.uint16) * 16).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", 1, strict=True).shape == (1, 40, 56)
    with pytest.raises(ReadError, match="shows no colour"):
        decode(tmp_path / "a.png", 3, strict=True)


def test_transparent_parts_are_black(tmp_path: Path, draw: Drawing) -> None:
    alpha = np.full(draw().shape, 255, np.uint8)
    alpha[-10:] = 0
    Image.merge("LA", [Image.fromarray(draw()), Image.fromarray(alpha)]).save(tmp_path / "a.png")
    image = decode(tmp_path / "a.png", 1)[0]
    assert (image[-10:] == 0).all()
    np.testing.assert_allclose(image[:-10], draw()[:-10] / 255, atol=1.5 / 255)


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (2, lambda upright: np.fliplr(upright)),
        (3, lambda upright: np.rot90(upright, 2)),
        (4, lambda upright: np.flipud(upright)),
        (5, lambda upright: upright.T),
        (6, lambda upright: np.rot90(upright)),
        (8, lambda upright: np.rot90(upright, -1)),
    ],
)
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_exif_orientation(
    tmp_path: Path, draw: Drawing, orientation: int, stored: Callable[[NDArray[Any]], NDArray[Any]], suffix: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.ascontiguousarray(stored(draw()))).save(path, exif=exif, quality=100)
    np.testing.assert_allclose(decode(path, 1)[0], draw() / 255, atol=0.03)


@pytest.mark.parametrize(
    ("affine", "stored"),
    [
        pytest.param(np.diag([-1.0, -1.0, 1.0, 1.0]), lambda up: up.T, id="as ITK and MONAI write"),
        pytest.param(np.eye(4), lambda up: up.T[::-1, ::-1], id="RAS"),
        pytest.param(np.diag([1.0, -1.0, 1.0, 1.0]), lambda up: up.T[::-1], id="RPS"),
        pytest.param(np.eye(4), lambda up: up.T[::-1, ::-1][:, None, :], id="coronal, one slice"),
        pytest.param(np.eye(4), lambda up: up.T[::-1, ::-1][..., None], id="axial, one slice"),
        pytest.param(np.eye(4), lambda up: up.T[::-1, ::-1][None], id="sagittal, one slice"),
        pytest.param(
            np.array([[0.0, -1, 0, 0], [0, 0, 1, 0], [-1, 0, 0, 0], [0, 0, 0, 1]]), lambda up: up, id="rows first"
        ),
        pytest.param(None, lambda up: up.T, id="no orientation"),
    ],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_is_turned_upright(
    tmp_path: Path,
    draw: Drawing,
    affine: NDArray[np.float64] | None,
    stored: Callable[[NDArray[Any]], NDArray[Any]],
    suffix: str,
) -> None:
    path = tmp_path / f"a{suffix}"
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(stored(draw())), affine), path)
    np.testing.assert_allclose(decode(path, 1)[0], draw() / 255, atol=1e-6)


def test_nifti_of_floating_values_has_its_own_scale(tmp_path: Path, draw: Drawing) -> None:
    values = draw().astype(np.float32) * 10 - 1000
    nibabel.save(nibabel.Nifti1Image(values.T, None), tmp_path / "a.nii.gz")
    np.testing.assert_allclose(decode(tmp_path / "a.nii.gz", 1)[0], _robust(values), atol=1e-5)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_dicom_monochrome1_is_inverted(
    tmp_path: Path, draw: Drawing, write_dicom: DicomWriter, photometric: str, dtype: type
) -> None:
    pixels: NDArray[Any] = draw().astype(dtype)
    write_dicom(tmp_path / "a.dcm", 255 - pixels if photometric == "MONOCHROME1" else pixels, photometric)
    expected = draw() / 255 if dtype is np.uint8 else _robust(pixels)
    np.testing.assert_allclose(decode(tmp_path / "a.dcm", 1)[0], expected, atol=1e-6)


def test_dicom_window_acts_on_rescaled_values(tmp_path: Path, draw: Drawing, write_dicom: DicomWriter) -> None:
    pixels = draw().astype(np.int16) * 4
    write_dicom(
        tmp_path / "a.dcm", pixels, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=[200, 0], WindowWidth=[401, 9]
    )
    # PS3.3 C.11.2.1.2.1: (x - (centre - 0.5)) / (width - 1) + 0.5
    expected = np.clip((pixels * 2.0 - 100 - 199.5) / 400 + 0.5, 0, 1)
    np.testing.assert_allclose(decode(tmp_path / "a.dcm", 1)[0], expected, atol=1e-5)


def test_dicom_with_falling_rescale_and_window(tmp_path: Path, draw: Drawing, write_dicom: DicomWriter) -> None:
    pixels = draw().astype(np.uint16)
    write_dicom(tmp_path / "a.dcm", pixels, RescaleSlope=-1, RescaleIntercept=255, WindowCenter=128, WindowWidth=256)
    np.testing.assert_allclose(decode(tmp_path / "a.dcm", 1)[0], 1 - draw() / 255.0, atol=0.01)


def test_dicom_voi_lut(tmp_path: Path, draw: Drawing, write_dicom: DicomWriter) -> None:
    table = Dataset()
    table.LUTDescriptor = [256, 0, 12]
    table.LUTData = np.minimum(4095, np.arange(256) ** 2 // 16).astype("<u2").tobytes()
    write_dicom(tmp_path / "a.dcm", draw().astype(np.uint16), VOILUTSequence=[table])
    expected = np.minimum(4095, draw().astype(int) ** 2 // 16) / 4095
    np.testing.assert_allclose(decode(tmp_path / "a.dcm", 1)[0], expected, atol=1e-5)


def test_dicom_padding_is_black_even_when_inverted(tmp_path: Path, draw: Drawing, write_dicom: DicomWriter) -> None:
    pixels = draw().astype(np.uint16) + 1000
    pixels[-8:] = 0
    write_dicom(tmp_path / "a.dcm", pixels, "MONOCHROME1", PixelPaddingValue=0)
    image = decode(tmp_path / "a.dcm", 1)[0]
    assert (image[-8:] == 0).all()
    np.testing.assert_allclose(image[:-8], 1 - _robust(pixels[:-8]), atol=1e-6)


def test_dicom_patient_id(tmp_path: Path, draw: Drawing, write_dicom: DicomWriter) -> None:
    write_dicom(tmp_path / "a.dcm", draw(), PatientID=" 17 ")
    write_dicom(tmp_path / "b.dcm", draw())
    (tmp_path / "c.dcm").write_bytes(b"")
    assert [dicom_patient_id(tmp_path / name) for name in ("a.dcm", "b.dcm", "c.dcm")] == ["17", None, None]


def test_empty_and_absent_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    assert _kind(tmp_path / "a.png") == "zero bytes"
    assert _kind(tmp_path / "b.png") == "absent"


@pytest.mark.parametrize("suffix", ["png", "jpg", "dcm", "nii", "nii.gz"])
@pytest.mark.parametrize("share", [0.4, 0.9])
def test_truncated_files(tmp_path: Path, draw: Drawing, write_dicom: DicomWriter, suffix: str, share: float) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "dcm":
        write_dicom(path, draw(height=64, width=64))
    elif suffix.startswith("nii"):
        nibabel.save(nibabel.Nifti1Image(draw(height=64, width=64), None), path)
    else:
        Image.fromarray(draw(height=64, width=64)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert _kind(path) == "truncated"


@pytest.mark.parametrize("suffix", ["png", "jpg", "dcm", "nii", "nii.gz"])
def test_files_of_something_else(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.{suffix}").write_bytes(b"no image at all " * 40)
    assert _kind(tmp_path / f"a.{suffix}") == "unreadable"


def test_wrong_extension(tmp_path: Path, draw: Drawing, write_dicom: DicomWriter) -> None:
    Image.fromarray(draw()).save(tmp_path / "a.jpg", format="PNG")
    write_dicom(tmp_path / "b.png", draw())
    Image.fromarray(draw()).save(tmp_path / "c.png", format="TIFF")
    (tmp_path / "d.nii.gz").write_bytes(gzip.compress(b"text " * 100))
    assert [_kind(tmp_path / name) for name in ("a.jpg", "b.png", "c.png")] == ["wrong extension"] * 3
    assert _kind(tmp_path / "d.nii.gz") == "unreadable"


@pytest.mark.parametrize("value", [0, 200, 255])
def test_blank_images(tmp_path: Path, draw: Drawing, write_dicom: DicomWriter, value: int) -> None:
    pixels = np.full(draw().shape, value, np.uint8)
    pixels[0, 0] = 77
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels.astype(np.uint16)).save(tmp_path / "b.png")
    write_dicom(tmp_path / "c.dcm", pixels.astype(np.uint16))
    assert [_kind(tmp_path / name) for name in ("a.png", "b.png", "c.dcm")] == ["blank"] * 3


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(tmp_path: Path, draw: Drawing, value: float) -> None:
    values = draw().astype(np.float32)
    values[3, 4] = value
    nibabel.save(nibabel.Nifti1Image(values, None), tmp_path / "a.nii")
    assert _kind(tmp_path / "a.nii") == "not finite"


def test_volumes(tmp_path: Path, draw: Drawing, write_dicom: DicomWriter) -> None:
    volume = np.stack([draw(i) for i in range(5)])
    write_dicom(tmp_path / "a.dcm", volume)
    nibabel.save(nibabel.Nifti1Image(volume, None), tmp_path / "a.nii.gz")
    frames = [Image.fromarray(frame) for frame in volume]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    assert [_kind(tmp_path / name) for name in ("a.dcm", "a.nii.gz", "a.png")] == ["3D volume"] * 3


def test_tiny_images(tmp_path: Path, draw: Drawing) -> None:
    Image.fromarray(draw(height=8, width=200)).save(tmp_path / "a.png")
    assert _kind(tmp_path / "a.png") == "too small"


def test_dicom_without_pixels_or_in_unknown_colours(tmp_path: Path, draw: Drawing, write_dicom: DicomWriter) -> None:
    dataset = write_dicom(tmp_path / "a.dcm", draw())
    del dataset.PixelData
    dataset.save_as(tmp_path / "a.dcm")
    assert _kind(tmp_path / "a.dcm") == "unreadable"
    write_dicom(tmp_path / "b.dcm", draw(), "PALETTE COLOR")
    assert _kind(tmp_path / "b.dcm") in ("unknown format", "unreadable")


def test_the_reader_knows_its_formats() -> None:
    reader = UprightReader(1)
    assert reader.verify_suffix("a.PNG")
    assert reader.verify_suffix([Path("a.nii.gz"), "b.dcm"])
    assert reader.verify_suffix("a.tif")
    assert not reader.verify_suffix("a.gif")
