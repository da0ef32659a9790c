# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import bundle.data.near_duplicates
from bundle.data.check_data import check_data
from bundle.data.modality import get_modality
from bundle.data.near_duplicates import near_duplicates, summary, thumbnail, warnings_of
from bundle.data.records import Record


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


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.crop((10, 10, 190, 190)),
        lambda image: image.crop((20, 20, 180, 180)),
        lambda image: ImageOps.mirror(image).crop((16, 16, 184, 184)),
        lambda image: image.rotate(5, Image.Resampling.BICUBIC),
        lambda image: image.rotate(-5, Image.Resampling.BICUBIC),
    ],
)
def test_crops_and_rotations_are_found(change: Callable[[Image.Image], Image.Image]) -> None:
    images = [*map(picture, range(8)), *(change(picture(number)) for number in range(4))]
    found = near_duplicates([seen(image) for image in images], [f"p{number}" for number in range(12)])
    assert [(pair.first, pair.second) for pair in found] == [(0, 8), (1, 9), (2, 10), (3, 11)]


def test_only_a_pair_of_training_and_held_out_image_is_said_to_have_been_trained_on(tmp_path: Path) -> None:
    records = [Record(tmp_path / f"{n}.png", f"{n}.png", 0, f"p{n}") for n in range(6)]
    for number, record in enumerate(records):
        picture(number % 3).resize((200 - number // 3,) * 2).save(record.image)
    digests = {record.name: record.name for record in records}
    splits = ["val", "extra", "train", "test", "val", "extra"]
    split_of = {record.name: split for record, split in zip(records, splits, strict=True)}
    warnings = warnings_of(records, digests, split_of, {}, get_modality("xray"), tmp_path / "problems.csv")
    told = "so that a held-out image may have been trained on"
    assert [(warning.name, told in warning.message) for warning in warnings] == [
        ("4.png", True),
        ("3.png", False),
        ("5.png", False),
    ]
    (note,) = summary(warnings[1:], tmp_path / "problems.csv")
    assert "trained on" not in note and "they are in test and val" in note


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
