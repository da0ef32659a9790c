# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The cohort: what leaves the house, and nothing else."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from PIL import Image
from torch import Tensor

from bundle.cohort.ledger import CohortError
from bundle.figures import from_uint8, image_grid
from bundle.files import sha256_file, write_json

__all__ = ["MANIFEST", "verify_cohort", "write_cohort"]

MANIFEST = "manifest.json"
FORMAT = 1
# Of the contact sheet, for each class.
SHEET_ROWS, SHEET_COLUMNS = 2, 12


def write_cohort(
    cohort_dir: str | os.PathLike[str],
    images: Iterable[tuple[int, Tensor]],
    class_names: tuple[str, ...],
    manifest: dict[str, Any],
    datasheet: str,
) -> None:
    """Writes a cohort under a temporary name and gives it its own when it is complete.

    Of several processes, each writes its share of the images, and the first all else.

    Args:
        cohort_dir: the folder; it must not exist.
        images: pairs of label and image, uint8 [H, W] or [H, W, 3], one class after the other.
        class_names: name of each label.
        manifest: how the cohort was made; format version and the SHA-256 of every file are added.
        datasheet: text of datasheet.md.

    Raises:
        CohortError: there is something under that name.
    """
    target = Path(cohort_dir)
    rank, processes = idist.get_rank(), idist.get_world_size()
    temporary = Path(str(idist.broadcast(_temporary_folder(target) if rank == 0 else "")))
    try:
        numbers = [0] * len(class_names)
        sheet: list[list[Tensor]] = [[] for _ in class_names]
        rows: list[tuple[str, int, str]] = []
        for label, pixels in images:
            numbers[label] += 1
            name = f"images/{class_names[label]}_{numbers[label]:06d}.png"
            if len(rows) % processes == rank:
                # Neighbouring pixels of a radiograph are alike, strings of them hardly ever: smaller and twice as fast.
                Image.fromarray(pixels.contiguous().numpy()).save(temporary / name, compress_type=zlib.Z_RLE)
            rows.append((name, label, class_names[label]))
            if len(sheet[label]) < SHEET_ROWS * SHEET_COLUMNS:
                sheet[label].append(pixels)
        idist.barrier()
        if rank > 0:
            return
        with open(temporary / "labels.csv", "w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream, lineterminator="\n")
            table.writerow(["image", "label", "label_name"])
            table.writerows(rows)
        _contact_sheet(sheet, class_names).save(temporary / "contact_sheet.png", optimize=True)
        (temporary / "datasheet.md").write_text(datasheet, encoding="utf-8")
        files = sorted(path.relative_to(temporary).as_posix() for path in temporary.rglob("*") if path.is_file())
        write_json(
            temporary / MANIFEST,
            {**manifest, "format": FORMAT, "files": {name: sha256_file(temporary / name) for name in files}},
        )
        temporary.replace(target)
    finally:
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)


def _temporary_folder(target: Path) -> str:
    if target.exists():
        raise CohortError(f"{target} exists and is not overwritten. Name another output_dir, or remove that folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    for left_behind in target.parent.glob(f".{target.name}-*"):
        shutil.rmtree(left_behind)  # of a run that was killed while it wrote
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    temporary.chmod(0o755)
    (temporary / "images").mkdir()
    return str(temporary)


def verify_cohort(cohort_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Compares every file of a cohort with its manifest.

    Args:
        cohort_dir: the folder.

    Returns:
        The manifest.

    Raises:
        CohortError: a file is absent, changed or added, or the manifest cannot be read.
    """
    folder = Path(cohort_dir)
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CohortError(f"{folder / MANIFEST} cannot be read ({error}): this is no complete cohort.") from error
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {MANIFEST}
    problems = [f"{name} is absent" for name in sorted(set(files) - found)]
    problems += [f"{name} does not belong to it" for name in sorted(found - set(files))]
    problems += [
        f"{name} was changed" for name in sorted(found & set(files)) if sha256_file(folder / name) != files[name]
    ]
    if problems:
        raise CohortError(
            f"{folder} is not the cohort that its manifest describes: {'; '.join(problems[:5])}"
            f"{' and more' if len(problems) > 5 else ''}. Remove the folder and run the same command to make it anew."
        )
    return manifest


def _contact_sheet(sheet: list[list[Tensor]], class_names: tuple[str, ...]) -> Image.Image:
    """Whole rows of each class, as many images of one as of the other."""
    shown = [pixels for pixels in sheet if pixels]
    number = min(len(pixels) for pixels in shown)
    columns = min(SHEET_COLUMNS, number)
    rows = min(SHEET_ROWS, number // columns)
    pixels = torch.stack([image for images in shown for image in images[: rows * columns]])
    labels = [name for name, images in zip(class_names, sheet, strict=True) if images for _ in range(rows)]
    return image_grid(from_uint8(pixels), columns, labels)
