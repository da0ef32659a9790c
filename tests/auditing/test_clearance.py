# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundle.auditing.clearance import passed_audit
from bundle.auditing.verdict import COPIES, PASSED, UNUSABLE
from bundle.cohort.export import export
from bundle.cohort.ledger import CohortError
from bundle.cohort.writer import images_sha256, verify_cohort
from bundle.files import write_json
from tests.cohort.test_export import make
from tests.cohort.test_writer import change, resealed


def audited(audit_dir: Path, cohort_dir: Path, code: int = PASSED, **changes: Any) -> Path:
    """Writes of an audit's results what says what it judged and how it ended."""
    cohort = {"images_sha256": images_sha256(verify_cohort(cohort_dir)), "releases": [], "filtered": [], **changes}
    title = {PASSED: "NO SIGN OF COPIES", COPIES: "NOT TO BE RELEASED", UNUSABLE: "CANNOT BE USED"}[code]
    write_json(audit_dir / "results.json", {"verdict": {"exit_code": code, "title": title}, "cohort": cohort})
    return audit_dir


@pytest.fixture
def cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make(tmp_path / "run" / "cohort")


def clearance(cohort: Path, audit_dir: Path | None = None) -> Path:
    return passed_audit(cohort, verify_cohort(cohort), audit_dir)


def refusal(cohort: Path, audit_dir: Path | None = None) -> str:
    with pytest.raises(CohortError) as caught:
        clearance(cohort, audit_dir)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_audit_is_found_beside_the_cohort_where_audits_write_and_where_it_is_named(
    cohort: Path, tmp_path: Path
) -> None:
    assert "No audit of this cohort was found" in refusal(cohort)
    default = audited(tmp_path / "output" / "audit-0", cohort)
    assert clearance(cohort) == default
    beside = audited(cohort.parent / "audit", cohort)
    assert clearance(cohort) == beside
    named = audited(tmp_path / "elsewhere", cohort)
    assert clearance(cohort, named) == named


def test_audit_of_several_releases_clears_each(cohort: Path, tmp_path: Path) -> None:
    releases = [{"images_sha256": images_sha256(verify_cohort(cohort))}, {"images_sha256": None}]
    audited(cohort.parent / "audit", cohort, images_sha256=None, releases=releases)
    assert clearance(cohort) == cohort.parent / "audit"
    other = make(tmp_path / "run" / "other", channels=3)
    assert "No audit of this cohort was found" in refusal(other)


def test_formats_that_were_added_do_not_matter(cohort: Path) -> None:
    audited(cohort.parent / "audit", cohort)
    export(cohort, "dicom,nifti")
    assert clearance(cohort) == cohort.parent / "audit"


def relabel(cohort: Path) -> None:
    table = cohort / "labels.csv"
    table.write_text(table.read_text().replace("000001.png,0,normal", "000001.png,1,tuberculosis"))


@pytest.mark.parametrize("edit", [lambda cohort: change(cohort / "images" / "normal_000001.png"), relabel])
def test_cohort_that_was_edited_after_its_audit_is_refused(cohort: Path, edit: Callable[[Path], None]) -> None:
    audit = audited(cohort.parent / "audit", cohort)
    edit(cohort)
    resealed(cohort)
    message = refusal(cohort, audit)
    assert message.startswith(f"The audit in {audit} judged other images or labels than the cohort has now. Audit the")
    assert f"--config_file configs/audit.json --cohort_dir {cohort} --dataset_dir DIR" in message
    assert "No audit of this cohort was found" in refusal(cohort)


@pytest.mark.parametrize("code", [COPIES, UNUSABLE])
def test_audit_that_was_not_passed_does_not_clear(cohort: Path, code: int) -> None:
    audit = audited(cohort.parent / "audit", cohort, code)
    title = {COPIES: "NOT TO BE RELEASED", UNUSABLE: "CANNOT BE USED"}[code]
    for named in (None, audit):
        assert refusal(cohort, named) == f"The audit in {audit} does not clear the cohort: {title}"


def test_copies_that_one_audit_found_count_whatever_another_says(cohort: Path) -> None:
    unusable = audited(cohort.parent / "a", cohort, UNUSABLE)
    passed = audited(cohort.parent / "b", cohort)
    assert clearance(cohort) == passed
    copies = audited(cohort.parent / "c", cohort, COPIES)
    assert refusal(cohort) == f"The audit in {copies} does not clear the cohort: NOT TO BE RELEASED"
    assert clearance(cohort, passed) == passed
    assert "does not clear" in refusal(cohort, unusable)


def test_audit_by_the_networks_that_chose_the_images_does_not_clear(cohort: Path) -> None:
    audit = audited(cohort.parent / "audit", cohort, filtered=[{"by_these_networks": True}])
    assert "It was made by the networks that chose the cohort's images." in refusal(cohort, audit)
    audited(audit, cohort, filtered=[{"by_these_networks": False}])
    assert clearance(cohort) == audit


@pytest.mark.parametrize(
    "content",
    [
        None,
        "{",
        "[]",
        json.dumps({"arms": {}}),
        json.dumps({"verdict": {"exit_code": 0, "title": ""}, "cohort": {"releases": [], "filtered": []}}),
        json.dumps({"verdict": {"exit_code": "x", "title": ""}, "cohort": {"images_sha256": "", "releases": []}}),
    ],
)
def test_results_that_do_not_say_what_was_judged_are_none(cohort: Path, content: str | None) -> None:
    folder = cohort.parent / "audit"
    folder.mkdir()
    if content is not None:
        (folder / "results.json").write_text(content, encoding="utf-8")
    assert "No audit of this cohort was found" in refusal(cohort)
    message = refusal(cohort, folder)
    assert message.startswith(f"{folder} holds no results of an audit (results.json) that name what they judged.")
