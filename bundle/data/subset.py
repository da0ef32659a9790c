# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Writes a subset of a data set as a new data set."""

from __future__ import annotations

import shutil
from pathlib import Path

from bundle.data.dataset import ImageData
from bundle.files import atomic_write
from bundle.markup import csv_text
from bundle.options import OptionError

__all__ = ["write_subset"]


def write_subset(data: ImageData, folder: Path, n_train: int) -> None:
    """Writes a class-balanced subset of train, and all of val and test, as a data set in the labels.csv layout.

    Args:
        data: the complete data set.
        folder: folder of the new data set, which must not exist. It contains real images and must not be shared.
        n_train: number of training images, a multiple of the number of classes.

    Raises:
        FileExistsError: the folder exists.
        OptionError: n_train is no such multiple, or a class has too few training images.
    """
    labels = range(len(data.class_names))
    train = [[record for record in data.records("train") if record.label == label] for label in labels]
    if n_train % len(labels) or any(len(records) < n_train // len(labels) for records in train):
        available = min(len(records) for records in train) * len(labels)
        raise OptionError([f"n_train must be a multiple of {len(labels)}, at most {available}, not {n_train}."])
    # Evenly spread over the names, which are grouped by source, so that the source does not reveal which are kept.
    share = n_train // len(labels)
    kept = [records[index * len(records) // share] for records in train for index in range(share)]
    folder.mkdir(parents=True)
    rows: list[list[object]] = [["image", "label", "patient_id", "split"]]
    for split, records in (("train", kept), ("val", data.records("val")), ("test", data.records("test"))):
        for record in records:
            target = folder / record.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(record.image, target)
            # With "./", spreadsheets do not take a name for a formula, and it is the same path to readers of the table.
            rows.append([f"./{record.name}", record.label, record.patient_id, split])
    with atomic_write(folder / "labels.csv") as temporary:
        temporary.write_bytes(csv_text(rows).encode())
