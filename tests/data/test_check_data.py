# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import run
from PIL import Image

import bundle.data
from scripts.data import check_data

FolderMaker = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]


def test_a_usable_folder(make_folder: FolderMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = bundle.data.check_data(make_folder(), tmp_path / "output", resolution=32, columns=4)
    assert (len(report.inventory.records), report.problems) == (24, [])
    text = capsys.readouterr().out
    assert "24 images of 24 patients, layout labels_csv, splits drawn by patient with seed 0" in text
    assert "The data can be used" in text
    with Image.open(tmp_path / "output" / "private" / "contact_sheet.png") as sheet:
        assert sheet.height == 6 * 34 - 2  # two classes in three splits, each a row of 32 pixels and a gap of 2
        assert sheet.width > 4 * 34
    assert (tmp_path / "output" / "private" / "splits.json").is_file()
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["private"]


def test_extra_images_beside_others_that_name_no_split(
    make_folder: FolderMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, more = make_folder(), tmp_path / "more"
    more.mkdir()
    picture = Image.open(folder / "00.png").rotate(90)
    picture.save(more / "x.png")
    (more / "labels.csv").write_text("image,label,split\nx.png,0,extra\n", encoding="utf-8")
    bundle.data.check_data([folder, more], tmp_path / "output")
    assert "splits drawn, extra given by the data, by patient with seed 0." in capsys.readouterr().out


def test_all_problems_are_in_the_table(
    make_folder: FolderMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder()
    for index in range(12):
        (folder / f"{index:02d}.png").write_bytes(b"")
    with pytest.raises(SystemExit) as caught:
        check_data(dataset_dir=folder, output_dir=tmp_path / "output")
    assert caught.value.code == 1
    text = capsys.readouterr().out
    assert [f"{index:02d}.png" in text for index in range(12)] == [True] * 3 + [False] * 9
    assert "12 images: 00.png, 01.png, 02.png" in " ".join(text.split())
    assert "12 problems: 12 zero bytes." in text
    with open(tmp_path / "output" / "private" / "problems.csv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["image"] for row in rows] == [f"{index:02d}.png" for index in range(12)]
    assert all(row["cure"] for row in rows)
    assert not (tmp_path / "output" / "private" / "contact_sheet.png").exists()


@pytest.mark.parametrize("options", [{"modality": "mri"}, {"layout": "flat"}, {"dataset_dir": ""}, {"resolution": 0}])
def test_impossible_options_need_no_traceback(
    make_folder: FolderMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, str | int]
) -> None:
    with pytest.raises(SystemExit) as caught:
        check_data(**{"dataset_dir": make_folder(), "output_dir": tmp_path / "output", **options})
    assert caught.value.code == 1
    assert capsys.readouterr().out


def test_the_command_ends_with_the_table_and_code_1(make_folder: FolderMaker, tmp_path: Path) -> None:
    folder = make_folder()
    (folder / "03.png").write_bytes(b"")
    command = [sys.executable, "-m", "monai.bundle", "run", "check_data", "--config_file", "configs/check_data.json"]
    command += ["--dataset_dir", str(folder), "--output_dir", str(tmp_path / "output")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "03.png" in done.stdout
    assert "Traceback" not in done.stderr + done.stdout


def _run(run_id: str, folder: Path, output: Path) -> None:
    options: dict[str, Any] = {"dataset_dir": str(folder), "output_dir": str(output), "resolution": 32}
    run(run_id, config_file=str(ROOT / "configs" / "check_data.json"), bundle_root=str(ROOT), **options)


def test_the_configuration(make_folder: FolderMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run("check_data", make_folder(), tmp_path / "output")
    assert "The data can be used" in capsys.readouterr().out


def test_the_run_id_shortcut(make_folder: FolderMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run("shortcut", make_folder(), tmp_path / "output")
    lines = capsys.readouterr().out.splitlines()
    (first,) = [index for index, line in enumerate(lines) if "16 images of train at 32 px" in line]
    rows = [line.split(" | ") for line in lines[first + 2 :]]
    assert [row[0].removesuffix(" (default)") for row in rows] == ["plain", "crop", "histogram", "crop_histogram"]
    assert sum(row[0].endswith(" (default)") for row in rows) == 1
    assert {len(row) for row in rows} == {6}
