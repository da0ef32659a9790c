# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""What tests of this folder share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundle.auditing.verdict import PASSED
from bundle.cohort.review_page import REVIEW_COLUMNS
from bundle.cohort.writer import read_labels, verify_cohort, write_cohort
from bundle.files import write_json
from bundle.markup import csv_text
from tests.auditing.test_clearance import audited
from tests.cohort.test_writer import NAMES, images

#: Makes a review of a cohort in which every image is accepted, but those that are named: "" or a reason to reject.
ReviewMaker = Callable[..., Path]

MANIFEST = {
    "configuration": {"n_images": 5, "seed": 4},
    "modality": "xray",
    "class_names": list(NAMES),
    "gate": {name: {"images": n, "judged": 9, "passed": 6} for name, n in zip(NAMES, (3, 2), strict=True)},
}


def audit_of(folder: Path, cohort: Path, code: int = PASSED, **changes: Any) -> Path:
    """Writes of an audit's results what a release reads."""
    estimate = {"value": 0.4, "low": 0.2, "high": 0.6}
    row = {"title": "copy rate", "is_share": True, **dict.fromkeys(("members", "placebo", "difference"), estimate)}
    audited(folder, cohort, code, **{"images": 5, **changes})
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    results["verdict"]["reasons"] = ["No image is nearer than chance allows; <b>all</b> controls were met."]
    results |= {"audit_id": "0123456789abcdef", "placebo": [row], "extra_images": 0}
    results["controls"] = [{"passed": True, "required": "at least 90%"}, {"passed": None, "required": ""}]
    results["real"] = {"train": {"images": 80, "patients": 70}, "test": {"images": 20, "patients": 19}}
    write_json(folder / "results.json", results)
    return folder


@pytest.fixture
def cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five images, which have passed an audit."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run" / "cohort"
    write_cohort(folder, images(), NAMES, MANIFEST, "# Datasheet of the whole\n")
    audit_of(folder.parent / "audit", folder)
    return folder


@pytest.fixture
def new_review(tmp_path: Path, cohort: Path) -> ReviewMaker:
    def write(file: Path = tmp_path / "review.csv", folder: Path = cohort, **decisions: str) -> Path:
        hashes = verify_cohort(folder)["files"]
        rows = []
        for name, _, label_name in read_labels(folder):
            given = decisions.get(Path(name).stem, "accept")
            decision, reason = (given, "") if given in ("accept", "") else ("reject", given)
            rows.append([name, hashes[name], label_name, decision, reason, "looks like Mr. Miller", "Dr. No"])
        file.write_text(csv_text([REVIEW_COLUMNS, *rows]), encoding="utf-8")
        return file

    return write
