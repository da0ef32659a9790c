# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Copies part of a data set, to train a GAN that is bound to memorise: few training images, all of val and test."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from bundle.command_line import plain_errors
from bundle.data import ImageData, open_dataset
from bundle.files import atomic_write
from bundle.markup import csv_text
from bundle.options import OptionError

__all__ = ["main", "write_subset"]


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


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line.

    Args:
        arguments: of it.
    """
    parser = argparse.ArgumentParser(prog="python -m scripts.tools.subset", description=__doc__)
    parser.add_argument("--dataset_dir", required=True, nargs="+", help="the whole data set: a folder, or several")
    parser.add_argument("--output_dir", required=True, type=Path, help="gets images/ (the part) and private/")
    parser.add_argument("--n_train", type=int, default=100, help="training images kept (default: %(default)s)")
    parser.add_argument("--modality", default="xray", help="preset (default: %(default)s)")
    options = parser.parse_args(arguments)
    with plain_errors(FileExistsError):
        data = open_dataset(options.dataset_dir, options.output_dir, options.modality)
        write_subset(data, options.output_dir / "images", options.n_train)
    print(f"Train on {options.output_dir / 'images'}")


if __name__ == "__main__":
    main()
