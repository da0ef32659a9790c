# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Blind reading: released images shuffled among real ones, for a reader who does not know which is which.

Networks measure what they were trained to see. A reader says what they miss: whether an image is ruined, that is, no
colleague would accept it as a photograph or radiograph of a patient, and whether synthetic images are told from real
ones. Sheets and answers hold real images and stay in ``private/``; the shares alone are written beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.auditing.images import Cohort, read_pixels
from bundle.auditing.resampling import LEAST, exact_share
from bundle.data import ImageData
from bundle.data.csv_files import read_csv
from bundle.data.errors import DataError
from bundle.data.records import Record
from bundle.evaluation.tables import cell_text
from bundle.figures import contact_sheet, from_uint8, save_png
from bundle.files import atomic_folder, private_folder, write_json, write_text
from bundle.markup import csv_text, markdown_table, printable

__all__ = ["ANSWERS", "score_reading", "write_sheets"]

#: File that the reader fills in: yes or no for each image.
ANSWERS = "answers.csv"
KEY = "key.csv"
SHEETS = "sheets"
QUESTIONS = ("ruined", "synthetic")
# Real images that no network has seen are shown first; there may be too few of them.
SPLITS = ("test", "val", "train")
# Smaller images are enlarged to this side in pixels, or a reader sees a stamp.
LEAST_SIDE = 256
COLUMNS, ROWS = 5, 4
YES, NO = ("yes", "y", "1", "true"), ("no", "n", "0", "false")


@dataclass(frozen=True)
class _Shown:
    """An image of a reading: what the key says of it."""

    record: Record
    label: int
    synthetic: bool


def write_sheets(cohort: Cohort, data: ImageData, output_dir: str, n_images: int, seed: int) -> None:
    """Writes numbered sheets of shuffled images, the key to them, and a table for the answers.

    Real images are preprocessed like those that the networks were trained on, and synthetic ones are shown as they are.
    Of each class, equally many are drawn of both: ``n_images``, or as many as the smaller side has.

    Args:
        cohort: the released images, with labels.
        data: real images, at the cohort's resolution.
        output_dir: its folder ``private`` receives ``sheets/``, ``key.csv`` and ``answers.csv``.
        n_images: images of each class and side.
        seed: random seed of the choice and the order.

    Raises:
        DataError: the cohort has no labels, no class has images on both sides, or the folder holds a reading.
    """
    private = private_folder(Path(output_dir) / "private")
    if (private / ANSWERS).exists() or (private / KEY).exists():
        raise DataError(f"{private} holds a reading, which is not overwritten. Name another output_dir.")
    random = np.random.default_rng(seed)
    shown = _choose(cohort, data, n_images, random)
    pixels = _pixels(shown, data)
    order = random.permutation(len(shown))
    per_sheet = COLUMNS * ROWS
    with atomic_folder(private / SHEETS) as folder:
        for number, first in enumerate(range(0, len(order), per_sheet), 1):
            places = order[first : first + per_sheet]
            captions = [str(first + place + 1) for place in range(len(places))]
            images = _enlarged(from_uint8(pixels[torch.from_numpy(places)]))
            save_png(contact_sheet(images, captions, COLUMNS), folder / f"sheet_{number:02d}.png")
    names = data.class_names
    key = [
        (number, names[shown[place].label], "synthetic" if shown[place].synthetic else "real", shown[place].record.name)
        for number, place in enumerate(order, 1)
    ]
    write_text(private / KEY, csv_text([("number", "class", "origin", "image"), *key]))
    numbers = [(number, *("" for _ in QUESTIONS), "") for number, *_ in key]
    write_text(private / ANSWERS, csv_text([("number", *QUESTIONS, "remark"), *numbers]))
    print(
        f"{len(shown)} images on {-(-len(shown) // per_sheet)} sheets: {printable(str(private / SHEETS))}\n"
        f"The reader writes yes or no into the columns {' and '.join(QUESTIONS)} (synthetic may stay empty) of "
        f"{printable(str(private / ANSWERS))}, and does not open {KEY}. Then run: scores"
    )


def score_reading(output_dir: str) -> None:
    """Holds the answers against the key, prints the shares and writes them to ``reading.json``.

    Raises:
        DataError: key or answers are missing, or answers are incomplete or neither yes nor no.
    """
    private = Path(output_dir) / "private"
    key, answers = _read_key(private / KEY), _read_answers(private / ANSWERS)
    if key.keys() != answers.keys():
        missing = sorted(key.keys() ^ answers.keys())[:5]
        raise DataError(f"{private / ANSWERS} and {KEY} differ in the numbers {missing}. Restore the rows.")
    if not answers or any(given["ruined"] is None for given in answers.values()):
        empty = [number for number, given in answers.items() if given["ruined"] is None][:5]
        raise DataError(f"{private / ANSWERS}: the column ruined is empty for {empty}. Write yes or no for each image.")
    groups = [("all", origin) for origin in ("synthetic", "real")]
    groups += sorted(
        {(name, origin) for name, origin in key.values()}, key=lambda group: (group[0], group[1] == "real")
    )
    results: dict[str, Any] = {}
    rows = [("images", "n", *(f"called {question} [95 % interval]" for question in QUESTIONS))]
    for name, origin in groups:
        members = [answers[number] for number, kind in key.items() if kind[1] == origin and name in ("all", kind[0])]
        shares = {question: _share([given[question] for given in members]) for question in QUESTIONS}
        results.setdefault(name, {})[origin] = {"n": len(members), **shares}
        rows.append((f"{name}, {origin}", str(len(members)), *(_percent(shares[question]) for question in QUESTIONS)))
    write_json(Path(output_dir) / "reading.json", results)
    print(markdown_table(rows))
    if all(given["synthetic"] is not None for given in answers.values()):
        print("A reader who cannot tell them apart calls as many real as synthetic images synthetic.")


def _choose(cohort: Cohort, data: ImageData, n_images: int, random: np.random.Generator) -> list[_Shown]:
    if cohort.labels is None:
        raise DataError(
            f"{cohort.folder} has images without a label. Give it a labels.csv, or a folder for each class."
        )
    shown = []
    for label in range(len(data.class_names)):
        released = [record for record in cohort.records if record.label == label]
        real = [record for split in SPLITS for record in _shuffled(_of_class(data, split, label), random)]
        n = min(n_images, len(released), len(real))
        shown += [_Shown(record, label, True) for record in _shuffled(released, random)[:n]]
        shown += [_Shown(record, label, False) for record in real[:n]]
    if not shown:
        raise DataError(f"{cohort.folder} and the real images have no class in common. Name images of the same kind.")
    return shown


def _of_class(data: ImageData, split: str, label: int) -> list[Record]:
    return [record for record in data.records(split) if record.label == label]


def _shuffled(records: Sequence[Record], random: np.random.Generator) -> list[Record]:
    return [records[place] for place in random.permutation(len(records))]


def _pixels(shown: Sequence[_Shown], data: ImageData) -> Tensor:
    """Returns the images as they are shown, uint8 [N, H, W] or [N, H, W, 3]."""
    sides = {}
    for synthetic, what in ((True, "synthetic images"), (False, "real images")):
        modality = (data.with_preprocessing("plain") if synthetic else data).modality
        paths = [one.record.image for one in shown if one.synthetic == synthetic]
        sides[synthetic] = iter(read_pixels(paths, modality, data.resolution, what))
    return torch.stack([next(sides[one.synthetic]) for one in shown])


def _enlarged(images: Tensor) -> Tensor:
    if images.shape[-1] >= LEAST_SIDE:
        return images
    return F.interpolate(images, size=(LEAST_SIDE, LEAST_SIDE), mode="bicubic", antialias=True).clamp(-1.0, 1.0)


def _read_key(path: Path) -> dict[int, tuple[str, str]]:
    return {number: (cells[1], cells[2]) for number, cells in _rows(path, ("number", "class", "origin")).items()}


def _read_answers(path: Path) -> dict[int, dict[str, bool | None]]:
    answers = {}
    for number, (_, *cells) in _rows(path, ("number", *QUESTIONS)).items():
        for question, cell in zip(QUESTIONS, cells, strict=True):
            if cell.lower() not in (*YES, *NO, ""):
                raise DataError(f"{path}: {question} of image {number} is {cell!r}. Write yes or no.")
        answers[number] = {
            question: None if not cell else cell.lower() in YES for question, cell in zip(QUESTIONS, cells, strict=True)
        }
    return answers


def _rows(path: Path, wanted: Sequence[str]) -> dict[int, list[str]]:
    """Returns the wanted cells of each row by the number in its first one."""
    if not path.is_file():
        raise DataError(f"{path} is missing. Run sheets first, with the same output_dir.")
    names, rows = read_csv(path)
    lower = [name.lower() for name in names]
    if missing := [name for name in wanted if name not in lower]:
        raise DataError(f"{path} has no column {missing[0]}. Restore it.")
    places = [lower.index(name) for name in wanted]
    found = {}
    for line, cells in rows:
        values = [cells[place].strip() for place in places]
        if not values[0].isdecimal() or int(values[0]) in found:
            raise DataError(f"{path}: line {line} has no number of its own. Restore the column number.")
        found[int(values[0])] = values
    return found


def _share(marked: Sequence[bool | None]) -> dict[str, float] | None:
    """Returns a share with its exact interval; None if an answer is missing or too few would tell of single images."""
    known = [bool(value) for value in marked if value is not None]
    if len(known) < len(marked) or len(known) < LEAST:
        return None
    found = exact_share(sum(known), len(known), np.empty(0))
    return {"value": found.value, "low": found.low, "high": found.high}


def _percent(share: dict[str, float] | None) -> str:
    return "not estimated" if share is None else cell_text(share, is_share=True)
