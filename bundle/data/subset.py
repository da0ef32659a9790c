# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Part of a data set as a data set of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

from bundle.data.dataset import ImageData
from bundle.files import atomic_write
from bundle.markup import csv_text
from bundle.options import OptionError

__all__ = ["write_subset"]


def write_subset(data: ImageData, folder: Path, n_train: int) -> None:
    """Writes a data set in the labels.csv layout.

    Args:
        data: the whole.
        folder: where the part goes; must not exist. Real images: keep it as private as the whole.
        n_train: training images kept, the classes in equal number, evenly spread over the images' names.

    Raises:
        FileExistsError: the folder exists.
        OptionError: there are fewer training images than that.
    """
    labels = range(len(data.class_names))
    train = [[record for record in data.records("train") if record.label == label] for label in labels]
    if n_train % len(labels) or any(len(records) < n_train // len(labels) for records in train):
        available = min(len(records) for records in train) * len(labels)
        raise OptionError([f"n_train must be a multiple of {len(labels)}, at most {available}, not {n_train}."])
    # Evenly spread over the names, which are grouped by source: else members would differ from strangers by that alone.
    share = n_train // len(labels)
    kept = [records[index * len(records) // share] for records in train for index in range(share)]
    folder.mkdir(parents=True)
    rows: list[list[object]] = [["image", "label", "patient_id", "split"]]
    for split, records in (("train", kept), ("val", data.records("val")), ("test", data.records("test"))):
        for record in records:
            target = folder / record.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(record.image, target)
            # A path that starts here is no formula to a spreadsheet, and the same path to whoever reads the table.
            rows.append([f"./{record.name}", record.label, record.patient_id, split])
    with atomic_write(folder / "labels.csv") as temporary:
        temporary.write_bytes(csv_text(rows).encode())
