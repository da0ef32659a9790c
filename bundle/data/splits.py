# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Splits a data set by patient, once, and records the splits and the state of every image in a split file."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from bundle.data.errors import DataError, Problem
from bundle.data.records import SPLITS, Record
from bundle.files import sha256_file, write_json

__all__ = [
    "FRACTIONS",
    "Inventory",
    "Reading",
    "Splits",
    "draw_splits",
    "propose_splits",
    "resolve_splits",
    "splits_home",
]

#: Share of the images of each class that each split gets.
FRACTIONS = {"train": 0.7, "val": 0.1, "test": 0.2}

_FORMAT = 2


@dataclass(frozen=True)
class Reading:
    """Options for reading a data set; they are stored in the split file, so that later runs need not repeat them.

    Attributes:
        patient_pattern: regular expression of the patient, see :func:`bundle.data.layouts.read_folder`.
        drop_duplicates: whether only one of several images with the same pixels and label is used.
    """

    patient_pattern: str = ""
    drop_duplicates: bool = False

    @classmethod
    def settle(cls, split_file: Path | None, patient_pattern: str | None, drop_duplicates: bool | None) -> Reading:
        """Returns the given options; those that are None take the value stored in the split file, or the default.

        Raises:
            DataError: an option differs from the split file, or the file is no split file.
        """
        given = {"patient_pattern": patient_pattern, "drop_duplicates": drop_duplicates}
        known = {name: value for name, value in given.items() if value is not None}
        if split_file is None or not split_file.exists():
            return cls(**known)  # type: ignore[arg-type]
        kept: dict[str, Any] = _read(split_file)["reading"]
        for name, value in known.items():
            if value != kept[name]:
                raise DataError(
                    f"{name} is {value!r}, but the splits in {split_file} were made with {kept[name]!r}. Leave the "
                    "option out, or use another output_dir"
                )
        return cls(**kept)


@dataclass(frozen=True)
class Inventory:
    """The properties of a data set's images that the split file records.

    Attributes:
        records: one record per image.
        digests: SHA-256 of each image's decoded pixels, by image name; images that cannot be read have none.
        class_names: name of each label.
        reading: options with which the data set was read.
    """

    records: Sequence[Record]
    digests: Mapping[str, str]
    class_names: Sequence[str]
    reading: Reading = Reading()


@dataclass(frozen=True)
class Splits:
    """Assignment of images to splits.

    Attributes:
        split_of: split of each image, by image name.
        sha256: SHA-256 of the split file, which records every image's content, label, patient and split; networks and
            cohorts store it to show that they belong together.
        seed: random seed with which the splits, or val alone, were drawn; None where the data set defines them all.
    """

    split_of: Mapping[str, str]
    sha256: str
    seed: int | None


def draw_splits(records: Sequence[Record], seed: int, fractions: Mapping[str, float] = FRACTIONS) -> dict[str, str]:
    """Draws random splits by patient, stratified by label.

    Patients are shuffled and stably sorted by number of images, most first; each is assigned to the split that lacks
    most images of the patient's classes. With one image per patient, the shares are exact to one image per class.

    Args:
        records: records of the images; their order does not matter.
        seed: random seed of the shuffle.
        fractions: share of each split; they add up to 1.

    Returns:
        Split of each image, by image name.
    """
    patients: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.name):
        patients[record.patient_id].append(record)
    order = sorted(patients)
    np.random.default_rng(seed).shuffle(order)
    order.sort(key=lambda patient: -len(patients[patient]))
    totals = Counter(record.label for record in records)
    lacking = {split: {label: share * n for label, n in totals.items()} for split, share in fractions.items()}
    result: dict[str, str] = {}
    for patient in order:
        counts = Counter(record.label for record in patients[patient])
        choice = max(fractions, key=lambda split: _need(counts, lacking[split], totals, fractions[split]))
        for label, n in counts.items():
            lacking[choice][label] -= n
        result |= {record.name: choice for record in patients[patient]}
    return result


def _need(
    counts: Mapping[int | None, int],
    lacking: Mapping[int | None, float],
    totals: Mapping[int | None, int],
    share: float,
) -> tuple[float, float]:
    """Returns how many of a patient's images a split lacks, relative to its size (else small ones stay empty) first."""
    relative = sum(n * lacking[label] / (share * totals[label]) for label, n in counts.items())
    # Rounded, so that values that differ only by rounding errors count as ties.
    return round(relative, 9), sum(n * lacking[label] for label, n in counts.items())


def _check_unparted(records: Sequence[Record], split_of: Mapping[str, str]) -> None:
    seen: dict[str, Record] = {}
    problems = []
    for record in records:
        first = seen.setdefault(record.patient_id, record)
        if split_of[first.name] != split_of[record.name]:
            problems.append(
                Problem(
                    record.name,
                    "patient in two splits",
                    f"patient {record.patient_id} is in {split_of[record.name]} here and in {split_of[first.name]} "
                    f"with {first.name}",
                    "Give all images of the patient one split",
                )
            )
    if problems:
        raise DataError(problems)


def _read(split_file: Path) -> dict[str, Any]:
    """Returns the content of a split file; raises DataError where it is not of this format."""
    cure = "delete it to have the splits drawn anew, and train anew what was trained with it"
    try:
        content = json.loads(split_file.read_text(encoding="utf-8"))
        known = content["format"] == _FORMAT
        if known:
            entries = content["images"].values()
            known = all(set(entry) == {"split", "patient", "label", "sha256"} for entry in entries)
            known = known and {entry["split"] for entry in entries} <= set(SPLITS)
            known = known and set(content["reading"]) == {entry.name for entry in fields(Reading)}
            known = known and isinstance(content["classes"], list) and "seed" in content
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{split_file}: not a split file; {cure}") from error
    if not known:
        raise DataError(f"{split_file}: not a split file of format {_FORMAT}; {cure}")
    return content


def _from_file(inventory: Inventory, split_file: Path) -> tuple[dict[str, str], int | None]:
    content = _read(split_file)
    images, seed = content["images"], content["seed"]
    classes, now = content["classes"], list(inventory.class_names)
    names = {record.name for record in inventory.records}
    changed = [(name, "new image", "is new since the splits were drawn") for name in sorted(names - set(images))]
    changed += [
        (name, "image is gone", "was there when the splits were drawn and is gone")
        for name in sorted(set(images) - names)
    ]
    for record in inventory.records:
        if record.name not in images:
            continue
        was = images[record.name]
        digest = inventory.digests.get(record.name)
        val_was_drawn = seed is not None and (record.split, was["split"]) == ("train", "val")
        if was["patient"] != record.patient_id:
            what = f"belonged to patient {was['patient']}, now to {record.patient_id}"
            changed.append((record.name, "another patient", what))
        if record.split not in (None, was["split"]) and not val_was_drawn:
            what = f"was in split {was['split']}, the data now say {record.split}"
            changed.append((record.name, "another split", what))
        if was["label"] != record.label:
            what = f"was of class {_class_name(was['label'], classes)}, now of {_class_name(record.label, now)}"
            changed.append((record.name, "another label", what))
        if digest is not None and was["sha256"] != digest:
            changed.append((record.name, "other pixels", "shows something else than when the splits were drawn"))
    if classes != now:
        what = f"the classes were {', '.join(classes)}, now they are {', '.join(now)}"
        changed.append((split_file.name, "other classes", what))
    if changed:
        cure = "Use another output_dir for other data, or delete the split file and what was trained with it"
        raise DataError([Problem(name, kind, f"{what} ({split_file})", cure) for name, kind, what in changed])
    return {name: entry["split"] for name, entry in images.items()}, seed


def _class_name(label: int | None, class_names: Sequence[str]) -> str:
    return class_names[label] if label is not None and label < len(class_names) else str(label)


def _draw_val(records: Sequence[Record], seed: int) -> dict[str, str]:
    """Draws val from the train images of a data set that defines train and test, but no val."""
    train = [record for record in records if record.split == "train"]
    share = FRACTIONS["val"] / (FRACTIONS["train"] + FRACTIONS["val"])
    return draw_splits(train, seed, {"train": 1.0 - share, "val": share})


def propose_splits(inventory: Inventory, split_file: Path | None, seed: int) -> tuple[dict[str, str], int | None]:
    """Returns the splits that :func:`resolve_splits` would write, and their seed, without writing them.

    Raises:
        DataError: see :func:`resolve_splits`.
    """
    records = inventory.records
    given = {record.name: record.split for record in records if record.split is not None}
    unset = [record for record in records if record.split is None]
    if unset and not set(given.values()) <= {"extra"}:
        raise DataError(
            [
                Problem(record.name, "missing split", "has no split, though others have", "Fill in the split column")
                for record in unset
            ]
        )
    drawn_with: int | None = None
    if split_file is not None and split_file.exists():
        split_of, drawn_with = _from_file(inventory, split_file)
    elif not unset:
        split_of = given
        _check_unparted(records, split_of)
        if {"train", "test"} <= set(split_of.values()) <= {"train", "test", "extra"}:
            split_of |= _draw_val(records, seed)
            drawn_with = seed
    else:
        split_of, drawn_with = {**given, **draw_splits(unset, seed)}, seed
    _check_unparted(records, split_of)
    return split_of, drawn_with


def resolve_splits(inventory: Inventory, split_file: Path, seed: int) -> Splits:
    """Determines the split of each image and stores it in a file, with the content, label and patient of each image.

    The splits are those of the file if it exists, otherwise those of the records, otherwise drawn by
    :func:`draw_splits`. If the records define train and test but no val, val is drawn from train; if they define extra
    only, the other splits are drawn from the rest.

    Args:
        inventory: all images of the data set.
        split_file: path of the split file, which is read if it exists and otherwise written: JSON with sorted keys and
            without absolute paths.
        seed: random seed of the splits that are drawn.

    Raises:
        DataError: the file does not fit the images (every image that was added, removed or changed is named), only some
            records have a split and not all of these are extra, or a patient is in two splits.
    """
    split_of, drawn_with = propose_splits(inventory, split_file, seed)
    if not split_file.exists():
        images = {
            record.name: {
                "split": split_of[record.name],
                "patient": record.patient_id,
                "label": record.label,
                "sha256": inventory.digests.get(record.name),
            }
            for record in inventory.records
        }
        content = {"classes": list(inventory.class_names), "reading": asdict(inventory.reading), "images": images}
        write_json(split_file, {"format": _FORMAT, "seed": drawn_with, **content})
    return Splits(split_of, sha256_file(split_file), drawn_with)


def splits_home(models_dir: str, output_dir: str) -> Path:
    """Returns the folder whose subfolder ``private`` holds, or will hold, the split file of a data set.

    This is the parent of `models_dir` if the split file of the training is there, and `output_dir` otherwise.
    """
    home = Path(models_dir).parent
    return home if (home / "private" / "splits.json").exists() else Path(output_dir)
