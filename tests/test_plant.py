# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from bundle.auditing.planting import plant
from bundle.data import ImageData, open_dataset
from scripts.tools import plant as planting
from scripts.tools import subset


@pytest.fixture
def data(tiny_dataset: Path, tmp_path: Path) -> ImageData:
    return open_dataset(tiny_dataset, tmp_path / "opened", resolution=40).with_preprocessing("plain")


def test_every_other_copy_is_as_it_is(data: ImageData, tmp_path: Path) -> None:
    plant(data, tmp_path / "copies", 14)
    records = data.records("train")[::2]
    same = [
        Image.open(tmp_path / "copies" / f"{number:04d}.png").tobytes() == Image.open(record.image).tobytes()
        for number, record in enumerate(records)
    ]
    assert same == [True, False] * 7


def test_more_copies_than_images_are_refused_and_nothing_is_overwritten(data: ImageData, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="from 1 to 28, the training images, not 29"):
        plant(data, tmp_path / "copies", 29)
    plant(data, tmp_path / "copies", 1)
    with pytest.raises(FileExistsError):
        plant(data, tmp_path / "copies", 1)


@pytest.mark.parametrize(
    ("main", "option", "folder"), [(planting.main, "--n_images", "copies"), (subset.main, "--n_train", "images")]
)
def test_command_says_what_is_wrong(
    main: Callable[[Sequence[str]], None],
    option: str,
    folder: str,
    tiny_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def told(dataset_dir: Path, number: int) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(["--dataset_dir", str(dataset_dir), "--output_dir", str(tmp_path), option, str(number)])
        assert stopped.value.code == 1
        return capsys.readouterr().err

    assert "nowhere does not exist; give the folder" in told(tmp_path / "nowhere", 2)
    assert f"{option[2:]} must be" in told(tiny_dataset, 1000)
    main(["--dataset_dir", str(tiny_dataset), "--output_dir", str(tmp_path), option, "2"])
    assert len(list((tmp_path / folder).rglob("*.png"))) >= 2
    assert "File exists" in told(tiny_dataset, 2)
