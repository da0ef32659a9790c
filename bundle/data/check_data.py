# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Implements the command that checks whether a data set can be used, and shows the images as networks see them."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bundle.data.checks import CheckReport, check_dataset, private_dir
from bundle.data.dataset import ImageData, open_checked
from bundle.data.errors import Problem, by_kind
from bundle.data.layouts import DatasetDir
from bundle.data.modality import Modality, get_modality
from bundle.data.near_duplicates import summary, thumbnail, warnings_of
from bundle.data.records import SPLITS
from bundle.data.transforms import image_transform
from bundle.figures import image_grid, save_png
from bundle.files import write_text
from bundle.markup import csv_text

__all__ = ["check_data", "format_problems", "format_summary"]

#: Largest number of problems per kind that the printed table lists one by one.
EXAMPLES = 3


def _table(rows: Sequence[Sequence[str]], widths: Sequence[int]) -> str:
    """Formats rows as a table with a header and columns of at most the given widths, in which long cells wrap."""
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
    """Formats the problems as a table; kinds with many problems are summarised by their number and first names."""
    rows = [("image", "problem", "what is wrong", "cure")]
    groups = by_kind(problems)
    for kind, group in groups.items():
        if len(group) <= EXAMPLES:
            rows += [(problem.name, kind, problem.message, problem.cure) for problem in group]
        else:
            names = ", ".join(problem.name for problem in group[:EXAMPLES])
            first = group[0]
            rows.append((f"{len(group)} images: {names}, ...", kind, first.message, first.cure))
    total = ", ".join(f"{len(group)} {kind}" for kind, group in groups.items())
    return f"{_table(rows, (36, 24, 60, 44))}\n\n{len(problems)} problems: {total}."


def _write_problems(problems: Sequence[Problem], path: Path) -> None:
    if not problems:
        return
    rows = [(problem.name, problem.kind, problem.message, problem.cure) for problem in problems]
    write_text(path, csv_text([("image", "problem", "what is wrong", "cure"), *rows]))


def format_summary(report: CheckReport) -> str:
    """Formats the numbers of images by class and split, the origin of the splits, and the notes of the check."""
    records = report.inventory.records
    counts = Counter((record.label, report.split_of[record.name]) for record in records)
    splits = [split for split in SPLITS if any(report.split_of[record.name] == split for record in records)]
    rows = [("class", *splits, "all")]
    for label, name in enumerate(report.inventory.class_names):
        numbers = [counts[label, split] for split in splits]
        rows.append((f"{label} {name}", *map(str, numbers), str(sum(numbers))))
    patients = len({record.patient_id for record in records})
    given = {record.split for record in records} - {None}
    if report.seed is None:
        origin = "given by the data"
    elif not given:
        origin = "drawn"
    else:
        origin = "drawn, extra given by the data," if given == {"extra"} else "given by the data, val drawn from train"
    if report.seed is not None:
        origin += f" by patient with seed {report.seed}"
    lines = [
        _table(rows, (40, *[8] * (len(splits) + 1))),
        "",
        f"{len(records)} images of {patients} patients, layout {report.folder.layout}, splits {origin}.",
    ]
    return "\n".join([*lines, *report.notes])


def _draw_sheet(data: ImageData, path: Path, columns: int) -> None:
    """Draws example images of each class and split as the networks see them, one row each, with counts."""
    rows, labels = [], []
    for label, name in enumerate(data.class_names):
        for split in SPLITS:
            records = [record for record in data.records(split) if record.label == label]
            if records:
                # Evenly spread over the sorted names, since the first ones often are of one source.
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
    patient_pattern: str | None = None,
    drop_duplicates: bool | None = None,
) -> CheckReport:
    """Checks a data set; prints its problems, or a summary and the path of a contact sheet if it is usable.

    Writes into ``output_dir/private``, which shows real images and must not be shared: the results of the check;
    ``problems.csv`` if there are problems, or near-duplicates, which are noted only; the split file and
    ``contact_sheet.png`` if the data set is usable.

    Args:
        dataset_dir: path of the folder of images, or of several.
        output_dir: output folder.
        modality: preset of the kind of image, or its name.
        resolution: side of the images on the contact sheet, in pixels.
        layout: see :func:`bundle.data.layouts.read_folder`.
        seed: random seed of the splits, used where the data set defines none.
        columns: number of images in a row of the contact sheet.
        patient_pattern: see :func:`bundle.data.layouts.read_folder`; None for the value in the split file, if any.
        drop_duplicates: see :func:`bundle.data.checks.check_dataset`; None for the value in the split file, if any.

    Returns:
        The report of the check; the data set is usable if it has no problems.

    Raises:
        DataError: the folder cannot be read as a data set at all.
    """
    preset = get_modality(modality)
    image_transform(preset, resolution)  # refuses an invalid resolution before all images are checked
    thumbnails: dict[str, NDArray[np.uint8]] = {}
    report = check_dataset(
        dataset_dir,
        output_dir,
        preset,
        layout,
        seed,
        patient_pattern=patient_pattern,
        drop_duplicates=drop_duplicates,
        on_image=lambda name, image: thumbnails.update({name: thumbnail(image)}),
    )
    listed = private_dir(output_dir) / "problems.csv"
    alike = warnings_of(report.inventory.records, report.inventory.digests, report.split_of, thumbnails, preset, listed)
    report = replace(report, notes=[*report.notes, *summary(alike, listed)])
    _write_problems([*report.problems, *alike], listed)
    if report.problems:
        print("\n".join([format_problems(report.problems), *report.notes]))
        print(f"{dataset_dir} cannot be used as it is. Each problem by name: {listed}")
        return report
    data = open_checked(report, output_dir, preset, resolution, seed)
    _draw_sheet(data, sheet := private_dir(output_dir) / "contact_sheet.png", columns)
    print(format_summary(report))
    print(f"The data can be used. Contact sheet (real images, not to be shared): {sheet}")
    return report
