# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Return types of the functions of `bundle.api`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bundle.auditing.verdict import COPIES, PASSED, UNUSABLE
from bundle.cohort.writer import COLUMNS, MANIFEST, read_labels
from bundle.data import CheckReport, Problem
from bundle.data.check_data import format_summary
from bundle.data.checks import private_dir

__all__ = ["STATUS", "AuditResult", "DataCheck", "GeneratedCohort"]

#: Meaning of an audit's exit codes.
STATUS = {PASSED: "passed", COPIES: "copies", UNUSABLE: "unusable"}


@dataclass(frozen=True)
class GeneratedCohort:
    """A folder of synthetic images, usable as a path; notebooks display its contact sheet.

    Attributes:
        path: the folder ``cohort``, for release: images, labels, manifest, datasheet and contact sheet.
    """

    path: Path

    @property
    def private(self) -> Path:
        """Folder with the walk's data and comparisons of single images with real ones; must not be shared."""
        return self.path.parent / "private"

    @property
    def contact_sheet(self) -> Path:
        """Path of the contact sheet with the first images of each class."""
        return self.path / "contact_sheet.png"

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Content of ``manifest.json``: configuration, versions, counts of the gate, SHA-256 of every file."""
        content: dict[str, Any] = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
        return content

    @cached_property
    def labels(self) -> list[dict[str, Any]]:
        """Rows of ``labels.csv``, suitable for `pandas.DataFrame`.

        Each has ``image`` (file relative to `path`), ``label`` and ``label_name``.
        """
        return [dict(zip(COLUMNS, row, strict=True)) for row in read_labels(self.path)]

    def __len__(self) -> int:
        return len(self.labels)

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        counts = ", ".join(f"{counts['images']} {name}" for name, counts in self.manifest["gate"].items())
        return f"GeneratedCohort of {len(self)} images ({counts}) in {self.path}"

    def _repr_png_(self) -> bytes:
        return self.contact_sheet.read_bytes()


@dataclass(frozen=True)
class AuditResult:
    """Result of an audit.

    Attributes:
        output_dir: folder of the report.
        results: content of ``results.json``: verdict, controls and all figures.
        cohort: folder of the images that were audited.
        first: with ``remove_flagged``, the audit that removed images, of which this one audits the rest.
    """

    output_dir: Path
    results: dict[str, Any]
    cohort: Path | None = None
    first: AuditResult | None = None

    @property
    def status(self) -> str:
        """``passed``, ``copies`` (must not be released) or ``unusable`` (the cohort cannot be audited)."""
        return STATUS[self.exit_code]

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 0 for ``passed``, 3 for ``copies``, 4 for ``unusable``."""
        return int(self.results["verdict"]["exit_code"])

    @property
    def title(self) -> str:
        """The verdict in one line."""
        return str(self.results["verdict"]["title"])

    @property
    def reasons(self) -> tuple[str, ...]:
        """Reasons for the verdict."""
        return tuple(self.results["verdict"]["reasons"])

    @property
    def report(self) -> Path:
        """Path of the HTML report."""
        return self.output_dir / "report.html"

    @property
    def private(self) -> Path:
        """Folder with everything that names real images; must not be shared."""
        return private_dir(self.output_dir)

    def __repr__(self) -> str:
        reasons = "".join(f"\n- {reason}" for reason in self.reasons)
        return f"AuditResult: {self.status} (exit code {self.exit_code})\n{self.title}{reasons}\nReport: {self.report}"


@dataclass(frozen=True)
class DataCheck:
    """Result of a check of real images. Its representation neither names nor shows any of them.

    Attributes:
        report: records, splits, problems and notes.
        output_dir: folder whose subfolder ``private`` holds the split file and the pictures.
    """

    report: CheckReport
    output_dir: Path

    @property
    def usable(self) -> bool:
        """Whether the images can be used for training and audits as they are."""
        return not self.problems

    @property
    def problems(self) -> list[Problem]:
        """All problems, each with its remedy."""
        return self.report.problems

    @property
    def notes(self) -> list[str]:
        """Remarks that do not prevent the use of the images."""
        return self.report.notes

    @property
    def summary(self) -> str:
        """Table of the images of each class and split, with the notes; for usable images only."""
        return format_summary(self.report)

    @property
    def contact_sheet(self) -> Path | None:
        """Path of a picture of preprocessed real images, not to be shared; None unless the images are usable."""
        return private_dir(self.output_dir) / "contact_sheet.png" if self.usable else None

    def __repr__(self) -> str:
        count = len(self.problems)
        state = f"not usable, {count} problem{'s' * (count > 1)}" if count else "usable"
        return f"DataCheck: {state}, {len(self.report.folder.records)} images"
