# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""What the functions of `bundle.api` return."""

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

#: What an audit's exit codes mean.
STATUS = {PASSED: "passed", COPIES: "copies", UNUSABLE: "unusable"}


@dataclass(frozen=True)
class GeneratedCohort:
    """A folder of synthetic images. It can be given wherever a path can; notebooks show the contact sheet.

    Attributes:
        path: the folder ``cohort``: images, labels, manifest, datasheet and contact sheet, for whoever is to have them.
    """

    path: Path

    @property
    def private(self) -> Path:
        """Folder with what the walk left behind and what compares single images with real ones; never shared."""
        return self.path.parent / "private"

    @property
    def contact_sheet(self) -> Path:
        """Picture of the first images of each class."""
        return self.path / "contact_sheet.png"

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Content of ``manifest.json``: configuration, versions, counts of the gate, SHA-256 of every file."""
        content: dict[str, Any] = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
        return content

    @cached_property
    def labels(self) -> list[dict[str, Any]]:
        """Rows of ``labels.csv``, from which `pandas.DataFrame` makes a table.

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
    """What an audit has concluded.

    Attributes:
        output_dir: holds the report.
        results: content of ``results.json``: verdict, controls and all figures.
    """

    output_dir: Path
    results: dict[str, Any]

    @property
    def status(self) -> str:
        """``passed``, ``copies`` (not to be released) or ``unusable`` (the cohort cannot be judged)."""
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
        """What led to the verdict."""
        return tuple(self.results["verdict"]["reasons"])

    @property
    def report(self) -> Path:
        """The report, to be opened in a browser."""
        return self.output_dir / "report.html"

    @property
    def private(self) -> Path:
        """Folder with what names real images; never shared."""
        return private_dir(self.output_dir)

    def __repr__(self) -> str:
        reasons = "".join(f"\n- {reason}" for reason in self.reasons)
        return f"AuditResult: {self.status} (exit code {self.exit_code})\n{self.title}{reasons}\nReport: {self.report}"


@dataclass(frozen=True)
class DataCheck:
    """What a check of real images has found. Its representation names and shows none of them.

    Attributes:
        report: records, splits, problems and notes.
        output_dir: whose folder ``private`` holds the split file and the pictures.
    """

    report: CheckReport
    output_dir: Path

    @property
    def usable(self) -> bool:
        """Whether networks can be trained and cohorts audited with the images as they are."""
        return not self.problems

    @property
    def problems(self) -> list[Problem]:
        """Everything that is wrong, each with its cure."""
        return self.report.problems

    @property
    def notes(self) -> list[str]:
        """What is worth knowing but no reason to refuse the images."""
        return self.report.notes

    @property
    def summary(self) -> str:
        """Table of the images of each class and split, with the notes; of usable images."""
        return format_summary(self.report)

    @property
    def contact_sheet(self) -> Path | None:
        """Picture of real images as the networks see them, not to be shared; None unless the images are usable."""
        return private_dir(self.output_dir) / "contact_sheet.png" if self.usable else None

    def __repr__(self) -> str:
        count = len(self.problems)
        state = f"not usable, {count} problem{'s' * (count > 1)}" if count else "usable"
        return f"DataCheck: {state}, {len(self.report.folder.records)} images"
