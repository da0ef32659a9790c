# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Splits by patient, drawn once and kept in a file."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bundle.data.errors import DataError, Problem
from bundle.data.records import SPLITS, Record
from bundle.files import sha256_file, write_json

__all__ = ["FRACTIONS", "Splits", "draw_splits", "propose_splits", "resolve_splits"]

#: Share of the images of each class.
FRACTIONS = {"train": 0.7, "val": 0.1, "test": 0.2}

_FORMAT = 1


@dataclass(frozen=True)
class Splits:
    """Which image belongs to which split.

    Attributes:
        split_of: split of each image, by its name.
        sha256: SHA-256 of the split file's bytes; networks and cohorts carry it to show that they belong together.
        seed: what the splits were drawn with; None where the data set's own column decided.
    """

    split_of: Mapping[str, str]
    sha256: str
    seed: int | None


def draw_splits(records: Sequence[Record], seed: int) -> dict[str, str]:
    """Draws train, val and test in the shares :data:`FRACTIONS`, stratified by label, whole patients at a time.

    Patients are shuffled, those with most images come first, and each goes where its classes lack most images: with one
    image per patient the shares are exact to one image per class.

    Args:
        records: images with labels.
        seed: of the shuffle. Records in any order give the same splits.

    Returns:
        Split of each image, by its name.
    """
    patients: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.name):
        patients[record.patient_id].append(record)
    order = sorted(patients)
    np.random.default_rng(seed).shuffle(order)
    order.sort(key=lambda patient: -len(patients[patient]))
    totals = Counter(record.label for record in records)
    lacking = {split: {label: share * n for label, n in totals.items()} for split, share in FRACTIONS.items()}
    result: dict[str, str] = {}
    for patient in order:
        counts = Counter(record.label for record in patients[patient])
        choice = max(FRACTIONS, key=lambda split: _need(counts, lacking[split], totals, FRACTIONS[split]))
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
    """How much a split wants a patient: in shares of what it should hold, so that small splits are not left empty."""
    relative = sum(n * lacking[label] / (share * totals[label]) for label, n in counts.items())
    # Rounded, so that what is equal but for the last bits is decided by the number of images.
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


def _from_file(records: Sequence[Record], split_file: Path) -> tuple[dict[str, str], int | None]:
    try:
        content = json.loads(split_file.read_text(encoding="utf-8"))
        images = content["images"]
        split_of = {name: entry["split"] for name, entry in images.items()}
        patients = {name: entry["patient"] for name, entry in images.items()}
        seed = content["seed"]
        known = content["format"] == _FORMAT and set(split_of.values()) <= set(SPLITS)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{split_file}: not a split file ({error!r}); delete it to have the splits drawn anew"
        ) from error
    if not known:
        raise DataError(f"{split_file}: not a split file of format {_FORMAT}; delete it to have the splits drawn anew")
    cure = "Use another output_dir for other data, or delete the split file and what was trained with it"
    names = {record.name for record in records}
    changed = [(name, "is new since the splits were drawn") for name in sorted(names - set(split_of))]
    changed += [(name, "was there when the splits were drawn and is gone") for name in sorted(set(split_of) - names)]
    for record in records:
        if record.name in split_of and patients[record.name] != record.patient_id:
            changed.append((record.name, f"belonged to patient {patients[record.name]}, now to {record.patient_id}"))
        elif record.name in split_of and record.split not in (None, split_of[record.name]):
            changed.append((record.name, f"was in split {split_of[record.name]}, the data now say {record.split}"))
    if changed:
        raise DataError([Problem(name, "splits", f"{what} ({split_file})", cure) for name, what in changed])
    return split_of, seed


def propose_splits(records: Sequence[Record], split_file: Path | None, seed: int) -> tuple[dict[str, str], int | None]:
    """Returns the splits that :func:`resolve_splits` would settle on, and their seed, without writing them.

    Raises:
        DataError: see :func:`resolve_splits`.
    """
    given = [record for record in records if record.split is not None]
    if given and len(given) < len(records):
        raise DataError(
            [
                Problem(record.name, "missing split", "has no split, though others have", "Fill in the split column")
                for record in records
                if record.split is None
            ]
        )
    drawn_with: int | None = None
    if split_file is not None and split_file.exists():
        split_of, drawn_with = _from_file(records, split_file)
    elif given:
        split_of = {record.name: str(record.split) for record in records}
    else:
        split_of, drawn_with = draw_splits(records, seed), seed
    _check_unparted(records, split_of)
    return split_of, drawn_with


def resolve_splits(records: Sequence[Record], split_file: Path, seed: int) -> Splits:
    """Settles which image belongs to which split and keeps it in a file.

    The file wins where it exists; else the records' own splits; else they are drawn by :func:`draw_splits`.

    Args:
        records: all images of the data set.
        split_file: read if it exists, else written: JSON with sorted keys and no absolute path in it.
        seed: of the drawing.

    Raises:
        DataError: the file does not fit the records, only some records have a split, or a patient is in two splits.
    """
    split_of, drawn_with = propose_splits(records, split_file, seed)
    if not split_file.exists():
        patients = {record.name: record.patient_id for record in records}
        images = {name: {"split": split, "patient": patients[name]} for name, split in split_of.items()}
        write_json(split_file, {"format": _FORMAT, "seed": drawn_with, "images": images})
    return Splits(split_of, sha256_file(split_file), drawn_with)
