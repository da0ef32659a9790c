# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from bundle.data import DataError, ImageData
from bundle.evaluation.external import external_images


def test_all_images_count_whatever_their_split(hospital_data: ImageData, elsewhere: Path, tmp_path: Path) -> None:
    images = external_images(str(elsewhere), hospital_data, str(tmp_path))
    assert images is not None
    assert images.pixels.shape == (24, 32, 32)
    assert images.pixels.dtype == torch.uint8
    assert images.labels.bincount().tolist() == [12, 12]
    assert images.content() == {"images": 24, "patients": 24}
    assert [path.name for path in tmp_path.iterdir()] == ["private"]
    assert external_images("", hospital_data, str(tmp_path)) is None


def test_other_classes_are_refused(hospital_data: ImageData, elsewhere: Path, tmp_path: Path) -> None:
    for old, new in (("normal", "normal"), ("tuberculosis", "pneumonia")):
        shutil.copytree(elsewhere / old, tmp_path / "other" / new)
    with pytest.raises(DataError, match="the classes are normal, pneumonia, those of dataset_dir normal, tuberc"):
        external_images(str(tmp_path / "other"), hospital_data, str(tmp_path / "out"))


def test_images_of_the_data_set_itself_are_refused(
    hospital: Path, hospital_data: ImageData, elsewhere: Path, tmp_path: Path
) -> None:
    shutil.copytree(elsewhere, tmp_path / "mixed")
    shutil.copyfile(next(iter(sorted(hospital.glob("*.png")))), tmp_path / "mixed" / "normal" / "x.png")
    with pytest.raises(DataError, match="external_dir: 1 of its images are in dataset_dir as well"):
        external_images(str(tmp_path / "mixed"), hospital_data, str(tmp_path / "out"))
