# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import MediaStorageDirectoryStorage

from bundle.data.formats import MAX_PIXELS, SUPPORTED_FORMATS, ReadError, check_size, image_format, image_suffix
from bundle.data.readers import decode, dicom_patient_id

Drawing = Callable[..., NDArray[np.uint8]]
DicomWriter = Callable[..., Any]

#: Names that say nothing, or the wrong thing, about a DICOM file.
DICOM_NAMES = ["scan", "1.2.840.113619.2.55", "IM-0001.IMA", "a.dcm", "left.v2"]


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("10.left.png", ".png"),
        ("a.JFIF", ".jfif"),
        ("a.tiff", ".tiff"),
        ("a.NII.gz", ".nii.gz"),
        ("1.2.840.55", ""),
        ("a.gif", ""),
        ("a", ""),
    ],
)
def test_only_known_endings_count(name: str, suffix: str) -> None:
    assert image_suffix(Path(name)) == suffix


@pytest.mark.parametrize("name", DICOM_NAMES)
@pytest.mark.parametrize("preamble", [True, False])
@pytest.mark.parametrize(("implicit", "little"), [(False, True), (True, True), (False, False)])
def test_dicom_of_any_name_with_and_without_preamble(
    tmp_path: Path, draw: Drawing, write_dicom: DicomWriter, name: str, preamble: bool, implicit: bool, little: bool
) -> None:
    path = tmp_path / name
    pixels = draw().astype(np.uint16) * 16
    dataset = write_dicom(path, pixels, PatientID="17", Modality="DX")
    expected = decode(path, 1)
    if not preamble:
        dataset.preamble, dataset.file_meta = None, FileMetaDataset()
        dataset.PixelData = pixels.astype("<u2" if little else ">u2").tobytes()
        pydicom.dcmwrite(path, dataset, implicit_vr=implicit, little_endian=little)
    assert image_format(path) == "DICOM"
    assert dicom_patient_id(path) == "17"
    np.testing.assert_array_equal(decode(path, 1), expected)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08\0",
        b"image,label\na.png,0\n" * 50,
        b"\x08\0\x05\0" * 100,  # looks like a tag again and again, but no tag follows itself
        b"\x02\0\x02\0" + bytes(200),
        bytes(range(256)) * 8,
    ],
)
def test_files_that_are_no_images(tmp_path: Path, content: bytes) -> None:
    for name in ("notes", "1.2.3"):
        (tmp_path / name).write_bytes(content)
        assert image_format(tmp_path / name) is None
        assert dicom_patient_id(tmp_path / name) is None


def test_the_ending_decides_where_nothing_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a").symlink_to(tmp_path / "nowhere")
    assert image_format(tmp_path / "a.png") == "PNG"
    assert image_format(tmp_path / "a") is None
    assert image_format(tmp_path / "absent.ima") == "DICOM"
    assert image_format(tmp_path / "absent.1") is None
    assert image_format(tmp_path) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are a matter of Unix")
def test_pipes_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert image_format(tmp_path / "pipe") is None  # opening it would wait for a writer for ever
    assert dicom_patient_id(tmp_path / "pipe") is None


def test_the_index_of_a_dicom_disc_is_no_image(tmp_path: Path, draw: Drawing, write_dicom: DicomWriter) -> None:
    dataset = write_dicom(tmp_path / "DICOMDIR", draw())
    dataset.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    dataset.save_as(tmp_path / "DICOMDIR")
    assert image_format(tmp_path / "DICOMDIR") is None


def test_unknown_formats_are_refused_with_those_that_are_read(tmp_path: Path, draw: Drawing) -> None:
    Image.fromarray(draw()).save(tmp_path / "a.gif")
    (tmp_path / "notes").write_text("no image")
    for name in ("a.gif", "notes"):
        with pytest.raises(ReadError, match=SUPPORTED_FORMATS) as caught:
            decode(tmp_path / name, 1)
        assert caught.value.kind == "unknown format"


@pytest.mark.parametrize("form", ["TIFF", "BMP", "WEBP", "GIF", "PNG"])
def test_names_and_contents_that_disagree(tmp_path: Path, draw: Drawing, form: str) -> None:
    Image.fromarray(draw()).save(tmp_path / "a.jfif", format=form)
    with pytest.raises(ReadError, match=f"(?i)named as JPEG, but its content is {form}"):
        decode(tmp_path / "a.jfif", 1)


@pytest.mark.parametrize(
    ("width", "height", "pixel_bytes"), [(10_001, 10_000, 1), (10_000, 9_000, 6), (65535, 65535, 2)]
)
def test_sizes_beyond_the_limit(width: int, height: int, pixel_bytes: int) -> None:
    check_size(10_000, 10_000, 3)
    with pytest.raises(ReadError, match=f"{width} x {height} pixels.*at most {MAX_PIXELS // 10**6} million") as caught:
        check_size(width, height, pixel_bytes)
    assert caught.value.kind == "too large"
