# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Whether a cohort has passed an audit as it is, for commands that give cohorts away."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle.auditing.verdict import COPIES, PASSED
from bundle.cohort.ledger import CohortError
from bundle.cohort.writer import images_sha256
from bundle.markup import printable

__all__ = ["passed_audit"]

RESULTS = "results.json"
# Where audits write by default, relative to the working folder.
DEFAULT = "output/audit-*"


@dataclass(frozen=True)
class _Audit:
    """What is read of an audit's results.json.

    Attributes:
        folder: output folder of the audit.
        code: exit code of its verdict.
        title: its verdict in one line.
        judged: `bundle.cohort.writer.images_sha256` of each release that it judged.
        is_filter: whether its networks had chosen the images of the cohort, so that it says nothing.
    """

    folder: Path
    code: int
    title: str
    judged: tuple[str, ...]
    is_filter: bool


def passed_audit(
    cohort_dir: str | os.PathLike[str],
    manifest: Mapping[str, Any],
    audit_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Finds an audit that a cohort has passed with the images and labels that it has now.

    An audit counts if its ``results.json`` names the cohort's `bundle.cohort.writer.images_sha256`, alone or among
    several releases that were audited as one, and if its verdict is that there is no sign of copies. Formats that
    `bundle.cohort.export` has added since do not matter.

    Args:
        cohort_dir: folder of the cohort.
        manifest: its manifest, compared with the files before.
        audit_dir: output folder of the audit; None to look in all folders beside the cohort and where audits write by
            default. Of the audits found there, none may have found copies.

    Returns:
        The folder of the audit.

    Raises:
        CohortError: there is no such audit.
    """
    folder, sha256 = Path(cohort_dir).resolve(), images_sha256(manifest)
    audit_again = (
        "Audit the cohort as it is: python -m monai.bundle run audit --config_file configs/audit.json --cohort_dir "
        f"{printable(str(folder))} --dataset_dir DIR"
    )
    if audit_dir is not None:
        named = _read(Path(audit_dir))
        if named is None:
            raise CohortError(
                f"{printable(str(audit_dir))} holds no results of an audit ({RESULTS}) that name what they judged. "
                f"Name the output_dir of an audit; one of an earlier version has to be run again. {audit_again}"
            )
        if sha256 not in named.judged:
            raise CohortError(
                f"The audit in {printable(str(audit_dir))} judged other images or labels than the cohort has now. "
                f"{audit_again}"
            )
        found = [named]
    else:
        found = [audit for audit in _audits_near(folder) if sha256 in audit.judged]
    if not found:
        raise CohortError(
            f"No audit of this cohort was found, in the folders beside {printable(str(folder))} or in {DEFAULT}. If "
            f"there is one, name its folder: --audit_dir AUDIT. {audit_again}"
        )
    copies = [audit for audit in found if audit.code == COPIES]
    passed = [audit for audit in found if audit.code == PASSED and not audit.is_filter]
    if not passed or copies:
        audit = (copies or found)[0]
        why = "It was made by the networks that chose the cohort's images." if audit.code == PASSED else audit.title
        raise CohortError(f"The audit in {printable(str(audit.folder))} does not clear the cohort: {printable(why)}")
    return passed[0].folder


def _audits_near(cohort_dir: Path) -> Iterator[_Audit]:
    results = [*sorted(cohort_dir.parent.glob(f"*/{RESULTS}")), *sorted(Path().glob(f"{DEFAULT}/{RESULTS}"))]
    for folder in dict.fromkeys(path.parent.resolve() for path in results):
        if (audit := _read(folder)) is not None:
            yield audit


def _read(folder: Path) -> _Audit | None:
    """Reads an audit's results; None of results that are none, or that do not say what was judged."""
    try:
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        verdict, cohort = results["verdict"], results["cohort"]
        hashes = [cohort["images_sha256"], *(release["images_sha256"] for release in cohort["releases"])]
        return _Audit(
            folder,
            int(verdict["exit_code"]),
            str(verdict["title"]),
            tuple(sha256 for sha256 in hashes if isinstance(sha256, str)),
            any(entry["by_these_networks"] for entry in cohort["filtered"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
