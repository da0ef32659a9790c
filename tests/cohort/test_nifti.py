# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
from monai.data import NibabelReader
from monai.transforms import LoadImage
from PIL import Image

from bundle.cohort.image import CohortImage
from bundle.cohort.nifti import nifti_bytes
from bundle.data.readers import decode


def image(channels: int = 1, label_name: str = "tuberculosis") -> CohortImage:
    shape = (33, 31) if channels == 1 else (33, 31, 3)
    return CohortImage(np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8), 1, label_name, "xray")


@pytest.mark.parametrize("channels", [1, 3])
def test_picture_is_read_back_upright_and_to_the_bit(tmp_path: Path, channels: int) -> None:
    given = image(channels)
    (tmp_path / "a.nii.gz").write_bytes(nifti_bytes(given))
    planes = np.atleast_3d(given.pixels).transpose(2, 0, 1)
    assert np.array_equal(decode(tmp_path / "a.nii.gz", channels), np.divide(planes, 255.0, dtype=np.float32))


def test_voxels_are_columns_by_rows_and_the_orientation_is_that_of_itk(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(nifti_bytes(image()))
    volume = nibabel.load(tmp_path / "a.nii.gz")
    assert isinstance(volume, nibabel.Nifti1Image)
    assert (volume.shape, volume.get_data_dtype()) == ((31, 33, 1), np.uint8)
    assert np.array_equal(np.asarray(volume.dataobj)[..., 0].T, image().pixels)
    assert nibabel.aff2axcodes(volume.affine) == ("L", "P", "S")
    assert (volume.header["cal_min"], volume.header["cal_max"]) == (0, 255)


def test_colours_are_the_fifth_dimension_which_the_intent_says(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(nifti_bytes(image(3)))
    volume = nibabel.load(tmp_path / "a.nii.gz")
    assert isinstance(volume, nibabel.Nifti1Image)
    assert (volume.shape, volume.get_data_dtype()) == ((31, 33, 1, 1, 3), np.uint8)
    assert volume.header.get_intent("code")[0] == 2003
    assert np.array_equal(np.asarray(volume.dataobj)[:, :, 0, 0].transpose(1, 0, 2), image(3).pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_monai_reads_what_it_reads_from_the_png_file(tmp_path: Path, channels: int) -> None:
    (tmp_path / "a.nii.gz").write_bytes(nifti_bytes(image(channels)))
    Image.fromarray(image(channels).pixels).save(tmp_path / "a.png")
    squeezing = NibabelReader(squeeze_non_spatial_dims=True)
    voxels = LoadImage(squeezing, image_only=True, ensure_channel_first=True)(tmp_path / "a.nii.gz")
    picture = LoadImage("PILReader", image_only=True, ensure_channel_first=True)(tmp_path / "a.png")
    assert voxels.shape == (channels, 31, 33, 1)
    assert np.array_equal(np.asarray(voxels)[..., 0], np.asarray(picture))


def test_equal_images_give_equal_bytes_without_name_and_time() -> None:
    content = nifti_bytes(image())
    assert content == nifti_bytes(image())
    assert content[:10] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # no flag, no time, no system
    assert len(gzip.decompress(content)) == 352 + 33 * 31


def test_long_class_name_is_cut_between_letters() -> None:
    text = gzip.decompress(nifti_bytes(image(label_name="ß" * 60)))[148:228].rstrip(b"\0").decode()
    assert text == "Synthetic image of class " + "ß" * 27
