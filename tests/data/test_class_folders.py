# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from bundle.data import DataError
from bundle.data.layouts import read_folder


def _touch(folder: Path, *names: str) -> Path:
    """Layouts open no image, so an empty file will do."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("folders", "upper", "lower"),
    [
        (("hospitalA/normal", "hospitalA/tuberculosis", "hospitalB/normal"), "hospitalA", "normal"),
        (("hospitalA/sick", "hospitalA/healthy lungs", "hospitalB/sick", "hospitalB/healthy lungs"), "hospitalA", "h"),
        (("a/0", "a/1", "b/0", "b/1"), "a", "0"),
        (("normal/tuberculosis", "tuberculosis"), "normal", "tuberculosis"),
        (("normal", "tb/scans/Healthy"), "tb", "Healthy"),
        (("covid", "flu/COVID"), "flu", "COVID"),
        (("train/a/normal", "train/b/tb", "test/a/normal"), "a", "normal"),
        (("a/train/normal", "a/test/normal", "b/train/tb"), "a", "normal"),
    ],
)
def test_classes_may_be_the_folders_above_or_below(
    tmp_path: Path, folders: tuple[str, ...], upper: str, lower: str
) -> None:
    _touch(tmp_path, *(f"{folder}/x.png" for folder in folders))
    with pytest.raises(DataError, match=f"may be of class '{upper}' or of class '{lower}.*labels.csv"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    "folders",
    [
        ("normal/patient_001", "normal/patient_002", "tb/patient_001", "tb/patient_002"),
        ("covid/001", "covid/002", "flu/001", "flu/002"),
        ("covid/1", "covid/2", "flu/1", "flu/2"),
        ("normal/0", "normal/1", "tb/0", "tb/1"),
        ("0/0", "0/1", "1/0", "1/2"),
        ("normal/Mueller", "tb/Schmidt", "covid/Meier"),
        ("normal/AP", "normal/PA", "tb/AP", "tb/PA"),
        ("covid/images", "flu/images"),
        ("covid/train", "flu/train", "covid/test", "flu/test"),
        ("covid/images", "covid/masks", "flu/images", "flu/masks"),
        ("normal/healthy", "tb/tuberculosis"),
        ("train/covid/p1", "test/covid/p2", "train/flu/p1", "test/flu/p2"),
        ("train/covid/left", "test/covid/left", "train/covid/right", "test/covid/right", "train/flu"),
    ],
)
def test_other_folders_may_lie_below_the_class_folders(tmp_path: Path, folders: tuple[str, ...]) -> None:
    _touch(tmp_path, *(f"{folder}/x.png" for folder in folders))
    assert len(read_folder(tmp_path).class_names) >= 2


def test_a_folder_without_images_beside_the_class_folders_is_noted(tmp_path: Path) -> None:
    _touch(tmp_path, "train/normal/a.png", "train/tb/b.png", "test/normal/c.png", "test/masks/none.txt")
    (tmp_path / "train" / "covid").mkdir()
    (tmp_path / "test" / "tb").mkdir()
    (tmp_path / "train" / ".hidden").mkdir()
    folder = read_folder(tmp_path)
    assert folder.class_names == ("normal", "tuberculosis")
    assert folder.notes == ["No image in covid, beside the class folders: taken for no class."]
