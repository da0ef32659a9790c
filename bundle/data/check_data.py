# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The command that tells a user whether a data set can be used, and shows what the networks would see of it."""

from __future__ import annotations

import sys
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bundle.data.checks import CheckReport, check_dataset, private_dir
from bundle.data.dataset import ImageData
from bundle.data.errors import DataError, Problem
from bundle.data.layouts import DatasetDir
from bundle.data.modality import Modality, get_modality
from bundle.data.records import SPLITS
from bundle.data.splits import resolve_splits
from bundle.data.transforms import image_transform
from bundle.figures import image_grid, save_png

__all__ = ["check_data", "format_problems", "format_summary"]


def _table(rows: Sequence[Sequence[str]], widths: Sequence[int]) -> str:
    """Sets rows in columns of at most the given widths, long cells on several lines; the first row is the header."""
    widths = [min(widest, max(len(row[i]) for row in rows)) for i, widest in enumerate(widths)]
    lines = []
    for number, row in enumerate(rows):
        cells = [textwrap.wrap(cell, width) or [""] for cell, width in zip(row, widths, strict=True)]
        for line in range(max(map(len, cells))):
            parts = (cell[line] if line < len(cell) else "" for cell in cells)
            lines.append("  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip())
        if number == 0:
            lines.append("  ".join("-" * width for width in widths))
    return "\n".join(lines)


def format_problems(problems: Sequence[Problem]) -> str:
    """Returns a table of all problems and how often each kind occurs."""
    rows = [("image", "problem", "what is wrong", "cure")]
    rows += [(problem.name, problem.kind, problem.message, problem.cure) for problem in problems]
    kinds = Counter(problem.kind for problem in problems)
    total = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
    return f"{_table(rows, (36, 24, 60, 44))}\n\n{len(problems)} problems: {total}."


def format_summary(report: CheckReport) -> str:
    """Returns the counts of a data set by class and split, and where its splits come from."""
    records = report.folder.records
    counts = Counter((record.label, report.split_of[record.name]) for record in records)
    splits = [split for split in SPLITS if any(report.split_of[record.name] == split for record in records)]
    rows = [("class", *splits, "all")]
    for label, name in enumerate(report.folder.class_names):
        numbers = [counts[label, split] for split in splits]
        rows.append((f"{label} {name}", *map(str, numbers), str(sum(numbers))))
    patients = len({record.patient_id for record in records})
    origin = "given by the data" if report.seed is None else f"drawn by patient with seed {report.seed}"
    lines = [
        _table(rows, (40, *[8] * (len(splits) + 1))),
        "",
        f"{len(records)} images of {patients} patients, layout {report.folder.layout}, splits {origin}.",
    ]
    if patients == len(records):
        lines.append("Every image counts as a patient of its own; if that is not so, give a column patient_id.")
    return "\n".join([*lines, *report.notes])


def _draw_sheet(data: ImageData, path: Path, columns: int) -> None:
    """Draws the first images of each class and split as the networks see them, one row each, with counts."""
    rows, labels = [], []
    for label, name in enumerate(data.class_names):
        for split in SPLITS:
            records = [record for record in data.records(split) if record.label == label]
            if records:
                # Spread over the sorted names, which often begin with one source.
                shown = [records[i * len(records) // columns] for i in range(min(columns, len(records)))]
                images = data.load(shown)
                blank = torch.full((columns - len(images), *images.shape[1:]), -1.0)
                rows.append(torch.cat([images, blank]))
                labels.append(f"{name}, {split}: {len(records)}")
    save_png(image_grid(torch.cat(rows), columns, labels), path)


def check_data(
    dataset_dir: DatasetDir,
    output_dir: str | Path,
    modality: str | Modality = "xray",
    resolution: int = 128,
    layout: str | Mapping[str, Any] = "auto",
    seed: int = 0,
    columns: int = 10,
) -> None:
    """Opens every image, prints all problems in a table or a summary, and draws a contact sheet of a usable data set.

    Writes into ``output_dir/private``: the split file, what the check has seen, and the contact sheet
    ``contact_sheet.png``. That folder shows real images and must not leave the house.

    Args:
        dataset_dir: the folder of images, or several.
        output_dir: where to write.
        modality: preset.
        resolution: side in pixels at which the contact sheet shows the images.
        layout: see :func:`bundle.data.layouts.read_folder`.
        seed: of the splits, where they have to be drawn.
        columns: images in a row of the contact sheet.

    Raises:
        SystemExit: with code 1, after the table, where the data cannot be used.
    """
    try:
        preset = get_modality(modality)
        image_transform(preset, resolution)  # an impossible resolution should not wait for the check of all images
        report = check_dataset(dataset_dir, output_dir, preset, layout, seed)
        if report.problems:
            print(format_problems(report.problems))
            print(f"{dataset_dir} cannot be used as it is.")
            sys.exit(1)
        splits = resolve_splits(report.folder.records, private_dir(output_dir) / "splits.json", seed)
        data = ImageData(report.folder.records, splits, preset, report.folder.class_names, resolution, report.digests)
    except DataError as error:
        print(error)
        sys.exit(1)
    sheet = private_dir(output_dir) / "contact_sheet.png"
    _draw_sheet(data, sheet, columns)
    print(format_summary(report))
    print(f"The data can be used. Contact sheet (real images, keep it in the house): {sheet}")
