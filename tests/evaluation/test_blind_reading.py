# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Sheets that tell a reader nothing, and shares that agree with the key."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from monai.bundle import ConfigParser
from PIL import Image

from bundle.data.errors import DataError
from bundle.evaluation.blind_reading import score_reading
from tests.conftest import ROOT, cause

N = 12


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Light ramps of 64 x 64 pixels, 15 of each class."""
    folder = tmp_path_factory.mktemp("released")
    for name in ("normal", "tuberculosis"):
        (folder / name).mkdir()
        for index in range(15):
            ramp = np.linspace(130 + index, 255, 64).astype(np.uint8)
            Image.fromarray(np.tile(ramp, (64, 1))).save(folder / name / f"{index}.png")
    return folder


def run(name: str, cohort: Path, dataset_dir: Path, output_dir: Path, **options: object) -> None:
    config = ConfigParser(ConfigParser.load_config_file(ROOT / "configs" / "blind_reading.json"))
    config.update(
        {
            "bundle_root": str(ROOT),
            "cohort_dir": str(cohort),
            "dataset_dir": str(dataset_dir),
            "models_dir": str(output_dir / "no_models"),
            "output_dir": str(output_dir),
            "check_options": {},
            "n_images": N,
            **options,
        }
    )
    config.get_parsed_content(name)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def answer(private: Path, ruined: str, synthetic: str) -> None:
    """Fills in the answers: the images of one origin are ruined, those of another are taken for synthetic."""
    lines = ["number;ruined;synthetic;remark"]
    lines += [
        f"{row['number']};{'yes' if row['origin'] == ruined else 'no'};{'Y' if row['origin'] == synthetic else ''}"
        for row in read(private / "key.csv")
    ]
    text = "\n".join(lines) + "\n"
    (private / "answers.csv").write_text(text if synthetic else text.replace(";Y", ";"), encoding="utf-8")


@pytest.fixture
def reading(cohort: Path, tiny_dataset: Path, tmp_path: Path) -> Path:
    run("sheets", cohort, tiny_dataset, tmp_path / "reading")
    return tmp_path / "reading"


def test_key_names_what_stands_on_the_sheets(reading: Path) -> None:
    private = reading / "private"
    key = read(private / "key.csv")
    assert Counter((row["class"], row["origin"]) for row in key) == {
        (name, origin): N for name in ("normal", "tuberculosis") for origin in ("real", "synthetic")
    }
    assert [row["number"] for row in key] == [str(number) for number in range(1, 4 * N + 1)]
    sheets = sorted((private / "sheets").iterdir())
    assert [path.name for path in sheets] == ["sheet_01.png", "sheet_02.png", "sheet_03.png"]
    first = np.asarray(Image.open(sheets[0]))
    side, line = 256, (first.shape[0] - 4 * 256 - 3 * 2) // 4
    for place, row in enumerate(key[:20]):  # synthetic images are light, real ones have dark noise
        top, left = (place // 5) * (side + line + 2), (place % 5) * (side + 2)
        assert (first[top : top + side, left : left + side].min() > 120) == (row["origin"] == "synthetic")
    answers = read(private / "answers.csv")
    assert {tuple(row) for row in answers} == {("number", "ruined", "synthetic", "remark")}
    assert not any(row["ruined"] or row["synthetic"] or row["remark"] for row in answers)
    assert private.stat().st_mode & 0o077 == 0


def test_order_depends_on_the_seed_alone(cohort: Path, tiny_dataset: Path, tmp_path: Path, reading: Path) -> None:
    run("sheets", cohort, tiny_dataset, tmp_path / "again")
    run("sheets", cohort, tiny_dataset, tmp_path / "other", seed=1)
    same, again, other = (
        (folder / "private" / "key.csv").read_bytes() for folder in (reading, tmp_path / "again", tmp_path / "other")
    )
    assert same == again != other
    origins = [row["origin"] for row in read(reading / "private" / "key.csv")]
    assert {"real", "synthetic"} == set(origins[:10])  # shuffled, not one after the other


def test_shares_are_those_of_the_key(reading: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(reading / "private", "synthetic", "")
    score_reading(str(reading))
    found = json.loads((reading / "reading.json").read_text(encoding="utf-8"))
    ruined = found["all"]["synthetic"]["ruined"]
    assert (ruined["value"], ruined["high"]) == (1.0, 1.0) and 0.8 < ruined["low"] < 0.9
    assert found["all"]["real"]["ruined"]["value"] == 0.0
    assert found["all"]["real"]["synthetic"] is None  # not answered
    assert found["normal"]["real"] == {"n": N, "ruined": None, "synthetic": None}  # too few
    table = capsys.readouterr().out
    assert "| all, synthetic | 24 | 100.0 % [85.8, 100.0] | not estimated |" in table
    assert "cannot tell" not in table


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("3;no", "3;maybe", "ruined of image 3 is 'maybe'. Write yes or no"),
        ("3;no", "3;", r"the column ruined is empty for \[3\]"),
        ("3;no", "3000;no", r"differ in the numbers \[3, 3000\]. Restore the rows"),
        ("3;no", "2;no", "line 4 has no number of its own"),
        ("ruined", "broken", "has no column ruined"),
    ],
)
def test_bad_answers_are_refused(reading: Path, old: str, new: str, message: str) -> None:
    answer(reading / "private", "nothing", "")
    path = reading / "private" / "answers.csv"
    path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        score_reading(str(reading))
    assert not (reading / "reading.json").exists()


def test_a_reading_is_not_overwritten(reading: Path, cohort: Path, tiny_dataset: Path) -> None:
    before = (reading / "private" / "answers.csv").read_bytes()
    with pytest.raises(RuntimeError) as error:
        run("sheets", cohort, tiny_dataset, reading)
    assert "holds a reading, which is not overwritten" in str(cause(error.value))
    assert (reading / "private" / "answers.csv").read_bytes() == before


def test_scores_need_sheets(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Run sheets first"):
        score_reading(str(tmp_path))
