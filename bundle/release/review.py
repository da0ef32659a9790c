# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Reads a review of a cohort, the file review.csv, which review.html saves and other programs may write."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bundle.cohort.review_page import REASONS, REVIEW_COLUMNS
from bundle.cohort.writer import read_labels
from bundle.data.csv_files import read_csv
from bundle.markup import csv_value, printable

__all__ = ["Review", "ReviewError", "read_review"]

ACCEPT, REJECT = "accept", "reject"
# Columns that a review may lack.
FREE = ("comment", "reviewer")
AGAIN = (
    "Save it anew from the page of this cohort, which python -m monai.bundle run review_page --config_file "
    "configs/release.json --cohort_dir COHORT writes."
)


class ReviewError(RuntimeError):
    """A review that cannot be used; the message names the file, the place in it and the remedy."""


@dataclass(frozen=True)
class Review:
    """Decisions about the images of a cohort. What reviewers wrote in their own words is not kept.

    Attributes:
        accepted: names of the images that were accepted.
        rejected: reason, one of `bundle.cohort.review_page.REASONS`, of each image that was rejected, by its name.
        reviewers: number of reviewers that the file names.
    """

    accepted: frozenset[str] = frozenset()
    rejected: Mapping[str, str] = field(default_factory=dict)
    reviewers: int = 0

    def undecided(self, images: Iterable[str]) -> list[str]:
        """Returns the names among ``images`` about which there is no decision, in their order."""
        return [name for name in images if name not in self.accepted and name not in self.rejected]


def read_review(path: str | os.PathLike[str], folder: Path, manifest: Mapping[str, Any]) -> Review:
    """Reads a review and compares it with the cohort that it must be about.

    Args:
        path: the file, see docs/release.md.
        folder: folder of the cohort.
        manifest: its manifest, compared with the files before.

    Raises:
        ReviewError: a column is missing, a row is of another image or label than the cohort has, an image has two rows,
            or a decision or reason is none.
        DataError: the file is no CSV.
        OSError: the file cannot be read.
    """
    file = Path(path)
    names, rows = read_csv(file)
    if missing := [name for name in REVIEW_COLUMNS if name not in names and name not in FREE]:
        raise ReviewError(f"{_shown(file)} has no column {missing[0]}, so it is no review of a cohort. {AGAIN}")
    places = {name: names.index(name) for name in REVIEW_COLUMNS if name in names}
    known = {
        name: {"image": name, "sha256": manifest["files"][name], "label_name": label_name}
        for name, _, label_name in read_labels(folder)
    }
    lines: dict[str, int] = {}
    accepted, rejected, reviewers = set(), {}, set()
    strange = []
    for line, cells in rows:
        row = {name: csv_value(cells[place].strip()) for name, place in places.items()}
        name = row["image"]
        if known.get(name, {}).items() - row.items() or name not in known:
            strange.append((line, name))
            continue
        if name in lines:
            raise ReviewError(
                f"{_shown(file)} has two rows for {printable(name)}, in lines {lines[name]} and {line}. Keep one."
            )
        lines[name] = line
        if problem := _problem(row["decision"], row["reason"]):
            raise ReviewError(f"{_shown(file)}: line {line}: {problem}")
        if row["decision"] == ACCEPT:
            accepted.add(name)
        elif row["decision"] == REJECT:
            rejected[name] = row["reason"]
        if row["decision"]:
            reviewers.add(row.get("reviewer", ""))
    if strange:
        line, name = strange[0]
        raise ReviewError(
            f"{_shown(file)} is a review of another cohort than {printable(str(folder))}: in {len(strange)} of "
            f"{len(rows)} rows, the image, its SHA-256 or its class is none of the cohort's, the first in line {line} "
            f"({printable(name[:100])}). {AGAIN}"
        )
    return Review(frozenset(accepted), rejected, len(reviewers - {""}))


def _problem(decision: str, reason: str) -> str | None:
    """Returns what is wrong with a decision and its reason, or None."""
    if decision not in (ACCEPT, REJECT, ""):
        return f"decision is {decision[:40]!r}. Write {ACCEPT}, {REJECT}, or nothing for an image without a decision."
    if decision == REJECT and reason not in REASONS:
        return f"reason of the rejected image is {reason[:40]!r}. Write one of {', '.join(REASONS)}."
    if decision != REJECT and reason:
        return f"the image has a reason, {reason[:40]!r}, and is not rejected. Remove the reason, or write {REJECT}."
    return None


def _shown(path: Path) -> str:
    return printable(str(path))
