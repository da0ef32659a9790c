# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from bundle.data import DataError, Record, resolve_splits
from bundle.data.splits import FRACTIONS, draw_splits
from bundle.files import sha256_file


def _record(name: str, label: int, patient: str, split: str | None = None) -> Record:
    return Record(Path("/images") / name, name, label, patient, split)


def _records(n: int, classes: int = 2, per_patient: int = 1) -> list[Record]:
    return [_record(f"{i:04d}.png", i // per_patient % classes, f"p{i // per_patient}") for i in range(n)]


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
    first = resolve_splits(records, file, seed=5)
    again = resolve_splits(records, file, seed=6)
    assert again == first
    assert first.seed == 5
    assert first.sha256 == sha256_file(file)
    content = json.loads(file.read_text())
    assert content["images"]["0000.png"] == {"split": first.split_of["0000.png"], "patient": "p0"}
    assert "/images" not in file.read_text()


def test_the_same_data_give_the_same_bytes(tmp_path: Path) -> None:
    records = _records(40)
    moved = [Record(Path("/elsewhere") / r.name, r.name, r.label, r.patient_id) for r in reversed(records)]
    assert (
        resolve_splits(records, tmp_path / "a.json", 0).sha256 == resolve_splits(moved, tmp_path / "b.json", 0).sha256
    )


def test_a_split_column_wins(tmp_path: Path) -> None:
    records = [_record("a.png", 0, "p0", "test"), _record("b.png", 1, "p1", "extra")]
    splits = resolve_splits(records, tmp_path / "splits.json", seed=0)
    assert splits.split_of == {"a.png": "test", "b.png": "extra"}
    assert splits.seed is None


def test_a_column_with_gaps_is_refused(tmp_path: Path) -> None:
    records = [_record("a.png", 0, "p0", "test"), _record("b.png", 1, "p1")]
    with pytest.raises(DataError, match=r"b\.png: has no split"):
        resolve_splits(records, tmp_path / "splits.json", seed=0)


def test_a_column_that_parts_a_patient_is_refused(tmp_path: Path) -> None:
    records = [_record("left.png", 0, "p0", "train"), _record("right.png", 0, "p0", "test")]
    with pytest.raises(DataError, match=r"patient p0 is in test here and in train with left\.png") as caught:
        resolve_splits(records, tmp_path / "splits.json", seed=0)
    assert caught.value.problems[0].kind == "patient in two splits"
    assert not (tmp_path / "splits.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda records: records[1:], "is gone"),
        (lambda records: [*records, _record("new.png", 0, "new")], "is new"),
        (lambda records: [_record(r.name, 0, r.name) for r in records], "belonged to patient p0, now to 0000.png"),
        (lambda records: [_record(r.name, 0, r.patient_id, "extra") for r in records], "the data now say extra"),
    ],
)
def test_a_file_that_does_not_fit_the_data_is_refused(tmp_path: Path, change: object, message: str) -> None:
    records = _records(20)
    resolve_splits(records, tmp_path / "splits.json", seed=0)
    assert callable(change)
    with pytest.raises(DataError, match=message):
        resolve_splits(change(records), tmp_path / "splits.json", seed=0)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2, "seed": 0, "images": {}}', '{"format": 1}'])
def test_a_broken_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "splits.json").write_text(text)
    with pytest.raises(DataError, match="delete it to have the splits drawn anew"):
        resolve_splits(_records(20), tmp_path / "splits.json", seed=0)
