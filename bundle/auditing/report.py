# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Writes the results of an audit: a report of aggregates for publication, and private lists of nearest images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from bundle.auditing.assessment import HALVES
from bundle.auditing.distances import Distances
from bundle.auditing.images import Cohort
from bundle.auditing.reference import ALIGNED, EMBEDDING
from bundle.auditing.single_images import SingleImages
from bundle.figures import contact_sheet, from_uint8, save_png
from bundle.figures.audits import correlation_chart
from bundle.files import atomic_write, private_folder, write_json
from bundle.markup import csv_text, printable, three_digits, write_html
from bundle.metrics.copies import copy_threshold

__all__ = ["write_private", "write_report"]

# Number of pairs in the private contact sheet.
PICTURED = 24


def write_report(path: str | os.PathLike[str], results: dict[str, Any]) -> None:
    """Writes the report as a self-contained HTML file.

    Args:
        path: name of the file.
        results: content of results.json, the only source of the report.
    """
    write_html(
        path,
        Path(__file__).parent / "report.html.j2",
        r=results,
        chart=Markup(correlation_chart(results["correlation_quantiles"], results["threshold"])),
        halves=HALVES,
        show=lambda value: f"{value:.3f}" if abs(value) < 10 else three_digits(value),
        percent=lambda value: f"{value:.1%}",
    )


def write_private(
    folder: Path, distances: Distances, cohort: Cohort, single: SingleImages, rules: Mapping[str, Tensor]
) -> None:
    """Writes the nearest training image of every synthetic image as a table, and the nearest pairs as a contact sheet.

    Args:
        folder: private folder for both files.
        distances: distances between the cohort and the real images; all of its steps must have been run.
        cohort: synthetic images with their names.
        single: bars and findings of the rule of the single image.
        rules: which images each rule of the verdict stops, bool [N], by name; these images come first.
    """
    points, nearest, found = distances.reference.points[EMBEDDING], distances.rows, distances.found
    records = distances.real["train"].records
    correlation, index = nearest["correlation"], nearest["index"]
    threshold = copy_threshold(points["val_correlation"])
    lpips = distances.lpips_to_train()
    stopped = torch.stack(list(rules.values())).any(dim=0)
    order = (correlation + 2.0 * stopped).argsort(descending=True, stable=True).tolist()
    rows: list[list[object]] = [
        [
            "image", "stopped_as", "nearest_real_image", "patient_id", "correlation", "copy",
            "verifier_names_the_same_patient", "lpips_to_nearest", "nearest_in_part", "correlation_in_part",
            "nearest_as_blend", "correlation_as_blend", "nearest_after_alignment", "correlation_after_alignment",
        ]
    ]  # fmt: skip
    for number in order:
        reasons = "; ".join(rule for rule, found_by in rules.items() if found_by[number])
        real, other = records[int(index[number])], records[int(nearest["verified_index"][number])]
        rows.append(
            [
                cohort.records[number].name, reasons, real.name, real.patient_id,
                f"{correlation[number]:.4f}", int(correlation[number] > threshold),
                int(real.patient_id == other.patient_id), f"{lpips[number]:.4f}",
                records[int(found["part_index"][number])].name, f"{found['part'][number]:.4f}",
                records[int(found["whole_index"][number])].name, f"{found['whole'][number]:.4f}",
                records[int(found[f"{ALIGNED}_index"][number])].name, f"{found[ALIGNED][number]:.4f}",
            ]
        )  # fmt: skip
    held_out = (*distances.real["val"].records, *distances.real["test"].records)
    odd = {"odd_held_out_images": [held_out[number].name for number in single.odd.nonzero()[:, 0].tolist()]}
    write_json(private_folder(folder) / "bars.json", {name: asdict(bar) for name, bar in single.bars.items()} | odd)
    if cohort.releases:
        write_json(folder / "releases.json", {n: str(path) for n, (path, *_) in enumerate(cohort.releases, start=1)})
    with atomic_write(folder / "nearest.csv") as temporary:
        temporary.write_bytes(csv_text(rows).encode())
    shown = order[:PICTURED]
    pairs = torch.stack(
        [
            side
            for number in shown
            for side in (distances.cohort[number], distances.real["train"].pixels[int(index[number])])
        ]
    )
    captions = [
        caption
        for number in shown
        for caption in (printable(cohort.records[number].name.rpartition("/")[2]), f"{float(correlation[number]):.3f}")
    ]
    save_png(contact_sheet(from_uint8(pairs), captions, columns=8), folder / "nearest.png")
