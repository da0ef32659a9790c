# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import bundle.data.near_duplicates
from bundle.data.check_data import check_data
from bundle.data.near_duplicates import near_duplicates, thumbnail


def picture(seed: int) -> Image.Image:
    """Structure of every size, 200 x 200."""
    random = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(random.normal(size=(n, n)).astype(np.float32)).resize((200, 200), Image.Resampling.BICUBIC)
        )
        for n in (9, 50)
    ]
    return Image.fromarray((127.5 + 30.0 * np.sum(layers, axis=0)).clip(0, 255).astype(np.uint8))


def seen(image: Image.Image) -> np.ndarray:
    return thumbnail(np.asarray(image, dtype=np.float32)[None] / 255.0)


def test_pictures_saved_anew_cropped_or_mirrored_are_found_unless_one_patient_owns_both() -> None:
    images = [picture(n) for n in range(20)]
    images += [
        images[0].resize((150, 150)),
        images[1].crop((5, 3, 197, 195)),
        ImageOps.mirror(images[2]),
        images[3].point(lambda value: 0.7 * value + 20),
        images[4],
    ]
    patients = [f"p{n}" for n in range(24)] + ["p4"]
    found = near_duplicates([seen(image) for image in images], patients)
    assert [(pair.first, pair.second) for pair in found] == [(0, 20), (1, 21), (2, 22), (3, 23)]
    assert near_duplicates([seen(images[0])], ["p0"]) == []


def test_thumbnails_keep_the_shape_and_pad_with_black() -> None:
    small = thumbnail(np.ones((3, 300, 600), dtype=np.float32))
    assert small.shape == (128, 128)
    assert (small[32:96] == 255).all()
    assert (small[:31] == 0).all()


def test_check_data_warns_of_pairs_those_across_splits_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    splits = ["train"] * 10 + ["val"] * 5 + ["test"] * 5
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["image", "label", "patient_id", "split"])
        for number in range(40):
            image = picture({1: 0, 35: 3}.get(number, number))
            image = image.crop((4, 4, 196, 196)) if number in (1, 35) else image
            image.save(folder / f"{number:02d}.png")
            rows.writerow([f"{number:02d}.png", number // 20, f"p{number}", splits[number % 20]])
    report = check_data(folder, tmp_path / "out")
    assert not report.problems
    told = capsys.readouterr().out
    assert "2 pairs of images of different patients show nearly the same picture, 1 of them across splits" in told
    assert (
        "35.png shows nearly the same picture as 03.png, which is another patient's; they are in test and train" in told
    )
    with (tmp_path / "out" / "private" / "problems.csv").open(encoding="utf-8") as stream:
        listed = [(row["image"], row["problem"]) for row in csv.DictReader(stream)]
    assert listed == [("35.png", "near-duplicate across splits"), ("01.png", "near-duplicate")]
    # The next check neither opens nor compares the images again.
    monkeypatch.setattr(bundle.data.near_duplicates, "near_duplicates", None)
    assert check_data(folder, tmp_path / "out").notes == report.notes
