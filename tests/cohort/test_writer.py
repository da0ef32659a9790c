# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bundle.cohort.ledger import CohortError
from bundle.cohort.writer import FORMAT, MANIFEST, verify_cohort, write_cohort

NAMES = ("normal", "tuberculosis")


def images(channels: int = 1, numbers: tuple[int, int] = (3, 2)) -> list[tuple[int, Tensor]]:
    random = torch.Generator().manual_seed(0)
    shape = (16, 16) if channels == 1 else (16, 16, 3)
    return [
        (label, torch.randint(0, 256, shape, generator=random, dtype=torch.uint8))
        for label, number in enumerate(numbers)
        for _ in range(number)
    ]


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    write_cohort(tmp_path / "cohort", images(), NAMES, {"seed": 4}, "# Datasheet\n")
    return tmp_path / "cohort"


def digest(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_files_of_a_cohort(cohort: Path) -> None:
    assert set(digest(cohort)) == {
        "labels.csv",
        "manifest.json",
        "datasheet.md",
        "contact_sheet.png",
        "images/normal_000001.png",
        "images/normal_000002.png",
        "images/normal_000003.png",
        "images/tuberculosis_000001.png",
        "images/tuberculosis_000002.png",
    }
    assert (cohort / "datasheet.md").read_text() == "# Datasheet\n"
    assert [path.name for path in cohort.parent.iterdir()] == ["cohort"]


def test_labels_name_every_image(cohort: Path) -> None:
    with open(cohort / "labels.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["image"] for row in rows] == sorted(name for name in digest(cohort) if name.startswith("images/"))
    assert [(row["label"], row["label_name"]) for row in rows] == [("0", "normal")] * 3 + [("1", "tuberculosis")] * 2


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_kept(tmp_path: Path, channels: int) -> None:
    given = images(channels)
    write_cohort(tmp_path / "cohort", given, NAMES, {}, "")
    with Image.open(tmp_path / "cohort" / "images" / "normal_000002.png") as picture:
        assert picture.mode == ("L" if channels == 1 else "RGB")
        assert np.array_equal(np.asarray(picture), given[1][1].numpy())


def test_manifest_has_what_was_given_and_every_files_hash(cohort: Path) -> None:
    manifest = verify_cohort(cohort)
    assert manifest["seed"] == 4
    assert manifest["format"] == FORMAT
    assert manifest["files"] == {name: sha for name, sha in digest(cohort).items() if name != MANIFEST}


def test_same_cohort_same_bytes(cohort: Path, tmp_path: Path) -> None:
    write_cohort(tmp_path / "again", images(), NAMES, {"seed": 4}, "# Datasheet\n")
    assert digest(tmp_path / "again") == digest(cohort)


def test_one_class_and_many_images(tmp_path: Path) -> None:
    write_cohort(tmp_path / "one", images(numbers=(0, 30)), NAMES, {}, "")
    assert len(list((tmp_path / "one" / "images").iterdir())) == 30
    verify_cohort(tmp_path / "one")


def test_nothing_is_overwritten(cohort: Path) -> None:
    before = digest(cohort)
    with pytest.raises(CohortError, match=r"exists and is not overwritten\. Name another output_dir"):
        write_cohort(cohort, images(numbers=(1, 1)), NAMES, {}, "")
    assert digest(cohort) == before


def test_writing_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[int, Tensor]]:
        yield images()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cohort(tmp_path / "cohort", broken(), NAMES, {}, "")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_behind_is_removed(tmp_path: Path) -> None:
    half = tmp_path / ".cohort-abc"
    (half / "images").mkdir(parents=True)
    (half / "images" / "normal_000001.png").write_bytes(b"half")
    write_cohort(tmp_path / "cohort", images(), NAMES, {}, "")
    assert [path.name for path in tmp_path.iterdir()] == ["cohort"]


def change(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


@pytest.mark.parametrize(
    ("name", "spoil", "words"),
    [
        ("images/normal_000001.png", Path.unlink, r"images/normal_000001\.png is absent"),
        ("labels.csv", change, r"labels\.csv was changed"),
        ("images/stranger.png", Path.touch, r"images/stranger\.png does not belong to it"),
        (MANIFEST, Path.unlink, r"manifest\.json cannot be read"),
        (MANIFEST, change, r"manifest\.json cannot be read"),
    ],
)
def test_verifying_names_what_is_wrong(cohort: Path, name: str, spoil: object, words: str) -> None:
    assert callable(spoil)
    spoil(cohort / name)
    with pytest.raises(CohortError, match=words):
        verify_cohort(cohort)


def test_verifying_stops_listing_at_five(cohort: Path) -> None:
    for number in range(9):
        (cohort / f"extra{number}").touch()
    with pytest.raises(CohortError, match=r"extra4 does not belong to it and more\. Remove the folder"):
        verify_cohort(cohort)
