# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bundle.data import DataError, Inventory, Record, resolve_splits
from bundle.data.splits import FRACTIONS, Reading, draw_splits
from bundle.files import sha256_file


def _record(name: str, label: int, patient: str, split: str | None = None) -> Record:
    return Record(Path("/images") / name, name, label, patient, split)


def _records(n: int, classes: int = 2, per_patient: int = 1) -> list[Record]:
    return [_record(f"{i:04d}.png", i // per_patient % classes, f"p{i // per_patient}") for i in range(n)]


def _inventory(records: list[Record], **digests: str) -> Inventory:
    return Inventory(records, {record.name: digests.get(record.name[:-4], "0") for record in records}, ["no", "yes"])


def _random_records(seed: int) -> list[Record]:
    """Patients with 1 to 6 images each; some patients have images of several classes, as two eyes can."""
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 6))
    records = []
    for patient in range(int(rng.integers(30 * classes, 60 * classes))):
        label = patient % classes
        for image in range(int(rng.choice([1, 1, 1, 2, 3, 6]))):
            own = int(rng.integers(classes)) if rng.random() < 0.1 else label
            records.append(_record(f"{patient}_{image}.png", own, f"p{patient}"))
    return records


@pytest.mark.parametrize("seed", range(25))
def test_no_patient_is_in_two_splits_and_shares_hold(seed: int) -> None:
    records = _random_records(seed)
    split_of = draw_splits(records, seed)
    assert set(split_of) == {record.name for record in records}
    of_patient = defaultdict(set)
    for record in records:
        of_patient[record.patient_id].add(split_of[record.name])
    assert all(len(splits) == 1 for splits in of_patient.values())
    for label, total in Counter(record.label for record in records).items():
        counts = Counter(split_of[record.name] for record in records if record.label == label)
        for split, share in FRACTIONS.items():
            # A patient has at most 6 images, and one that comes late may bring one image of another class.
            assert abs(counts[split] - share * total) <= 6


def test_shares_are_exact_where_every_image_is_a_patient() -> None:
    records = _records(200)
    counts = Counter((record.label, draw_splits(records, 3)[record.name]) for record in records)
    assert counts == {(c, s): n for c in (0, 1) for s, n in (("train", 70), ("val", 10), ("test", 20))}


def test_the_smallest_data_set_has_every_class_in_every_split() -> None:
    records = _records(20)
    split_of = draw_splits(records, 0)
    assert Counter((record.label, split_of[record.name]) for record in records) == {
        (c, s): n for c in (0, 1) for s, n in (("train", 7), ("val", 1), ("test", 2))
    }


def test_splits_depend_on_the_seed_and_on_nothing_else() -> None:
    records = _records(100, per_patient=2)
    assert draw_splits(records, 1) == draw_splits(list(reversed(records)), 1)
    assert draw_splits(records, 1) != draw_splits(records, 2)


def test_a_later_run_uses_the_file(tmp_path: Path) -> None:
    records = _records(40)
    file = tmp_path / "private" / "splits.json"
    first = resolve_splits(_inventory(records), file, seed=5)
    again = resolve_splits(_inventory(records), file, seed=6)
    assert again == first
    assert first.seed == 5
    assert first.sha256 == sha256_file(file)
    content = json.loads(file.read_text())
    assert content["images"]["0000.png"] == {
        "split": first.split_of["0000.png"],
        "patient": "p0",
        "label": 0,
        "sha256": "0",
    }
    assert "/images" not in file.read_text()


def test_the_same_data_give_the_same_bytes(tmp_path: Path) -> None:
    records = _records(40)
    moved = [Record(Path("/elsewhere") / r.name, r.name, r.label, r.patient_id) for r in reversed(records)]
    assert (
        resolve_splits(_inventory(records), tmp_path / "a.json", 0).sha256
        == resolve_splits(_inventory(moved), tmp_path / "b.json", 0).sha256
    )


def test_a_split_column_wins(tmp_path: Path) -> None:
    records = [_record("a.png", 0, "p0", "test"), _record("b.png", 1, "p1", "extra")]
    splits = resolve_splits(_inventory(records), tmp_path / "splits.json", seed=0)
    assert splits.split_of == {"a.png": "test", "b.png": "extra"}
    assert splits.seed is None


def test_a_column_with_gaps_is_refused(tmp_path: Path) -> None:
    records = [_record("a.png", 0, "p0", "test"), _record("b.png", 1, "p1")]
    with pytest.raises(DataError, match=r"b\.png: has no split"):
        resolve_splits(_inventory(records), tmp_path / "splits.json", seed=0)


def test_beside_extra_images_the_others_are_drawn_as_without_them(tmp_path: Path) -> None:
    own, extra = _records(40), [_record(f"more{i}.png", i % 2, f"m{i}", "extra") for i in range(6)]
    splits = resolve_splits(_inventory([*extra, *own]), tmp_path / "splits.json", 2)
    assert splits.split_of == {**draw_splits(own, 2), **{record.name: "extra" for record in extra}}
    assert splits.seed == 2
    parted = [*own, replace(extra[0], patient_id=next(r.patient_id for r in own if splits.split_of[r.name] == "test"))]
    with pytest.raises(DataError, match="patient"):
        resolve_splits(_inventory(parted), tmp_path / "parted.json", 2)


def test_a_column_that_parts_a_patient_is_refused(tmp_path: Path) -> None:
    records = [_record("left.png", 0, "p0", "train"), _record("right.png", 0, "p0", "test")]
    with pytest.raises(DataError, match=r"patient p0 is in test here and in train with left\.png") as caught:
        resolve_splits(_inventory(records), tmp_path / "splits.json", seed=0)
    assert caught.value.problems[0].kind == "patient in two splits"
    assert not (tmp_path / "splits.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda records: records[1:], "is gone"),
        (lambda records: [*records, _record("new.png", 0, "new")], "is new"),
        (lambda records: [_record(r.name, 0, r.name) for r in records], "belonged to patient p0, now to 0000.png"),
        (lambda records: [_record(r.name, 0, r.patient_id, "extra") for r in records], "the data now say extra"),
        (
            lambda records: [_record(r.name, 1 - (r.label or 0), r.patient_id) for r in records],
            "of class no, now of yes",
        ),
    ],
)
def test_a_file_that_does_not_fit_the_data_is_refused(tmp_path: Path, change: object, message: str) -> None:
    records = _records(20)
    resolve_splits(_inventory(records), tmp_path / "splits.json", seed=0)
    assert callable(change)
    with pytest.raises(DataError, match=message):
        resolve_splits(_inventory(change(records)), tmp_path / "splits.json", seed=0)


def test_an_image_that_shows_something_else_is_named(tmp_path: Path) -> None:
    records = _records(20)
    resolve_splits(_inventory(records), tmp_path / "splits.json", seed=0)
    changed = {f"{i:04d}": "1" for i in (3, 4)}
    with pytest.raises(DataError, match=r"0003\.png: shows something else") as caught:
        resolve_splits(_inventory(records, **changed), tmp_path / "splits.json", seed=0)
    assert [(problem.name, problem.kind) for problem in caught.value.problems] == [
        ("0003.png", "other pixels"),
        ("0004.png", "other pixels"),
    ]


def test_other_class_names_are_refused(tmp_path: Path) -> None:
    inventory = _inventory(_records(20))
    resolve_splits(inventory, tmp_path / "splits.json", seed=0)
    with pytest.raises(DataError, match="the classes were no, yes, now they are yes, no"):
        resolve_splits(replace(inventory, class_names=["yes", "no"]), tmp_path / "splits.json", seed=0)


def test_content_and_labels_are_part_of_the_hash(tmp_path: Path) -> None:
    records = _records(40)
    other_labels = [_record(r.name, 1 - (r.label or 0), r.patient_id) for r in records]
    inventories = [_inventory(records), _inventory(other_labels), _inventory(records, **{"0003": "1"})]
    hashes = {resolve_splits(entry, tmp_path / f"{i}.json", 0).sha256 for i, entry in enumerate(inventories)}
    assert len(hashes) == 3


def test_val_is_drawn_from_train_where_the_data_bring_train_and_test_alone(tmp_path: Path) -> None:
    records = [_record(f"{i:03d}.png", i % 2, f"p{i // 2}", "test" if i >= 160 else "train") for i in range(200)]
    splits = resolve_splits(_inventory(records), tmp_path / "splits.json", seed=4)
    assert splits.seed == 4
    assert Counter(splits.split_of.values()) == {"train": 140, "val": 20, "test": 40}
    assert {splits.split_of[r.name] for r in records if r.split == "test"} == {"test"}
    assert all(splits.split_of[f"{i:03d}.png"] == splits.split_of[f"{i + 1:03d}.png"] for i in range(0, 200, 2))
    assert resolve_splits(_inventory(records), tmp_path / "splits.json", seed=5) == splits


def test_a_file_keeps_how_the_data_were_read(tmp_path: Path) -> None:
    file = tmp_path / "splits.json"
    assert Reading.settle(file, None, None) == Reading()
    reading = Reading.settle(file, "p(.)", True)
    resolve_splits(replace(_inventory(_records(20)), reading=reading), file, 0)
    assert Reading.settle(file, None, None) == Reading.settle(file, "p(.)", True) == Reading("p(.)", True)
    with pytest.raises(DataError, match=r"patient_pattern is 'q\(\.\)', but the splits in .* were made with 'p\(\.\)'"):
        Reading.settle(file, "q(.)", None)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "[" * 100_000,
        '{"format": 1, "seed": 0, "images": {}}',
        '{"format": 2}',
        '{"format": 2, "seed": 0, "classes": [], "reading": {}, "images": {"a.png": {"split": "train"}}}',
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "splits.json").write_text(text)
    with pytest.raises(DataError, match="delete it to have the splits drawn anew"):
        resolve_splits(_inventory(_records(20)), tmp_path / "splits.json", seed=0)
