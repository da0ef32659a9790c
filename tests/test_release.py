# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""`review_page` and `release` as commands; what they do is tested in tests/cohort and tests/release."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import monai.bundle
import pytest

from bundle.cohort.review_page import PAGE
from bundle.options import OptionError
from bundle.release.releasing import ARCHIVE
from tests.conftest import ROOT
from tests.release.conftest import ReviewMaker
from tests.release.conftest import cohort as cohort
from tests.release.conftest import new_review as new_review

CONFIG = str(ROOT / "configs" / "release.json")


def test_commands_write_page_and_archive(cohort: Path, new_review: ReviewMaker, tmp_path: Path) -> None:
    given = {"config_file": CONFIG, "bundle_root": str(ROOT), "cohort_dir": str(cohort)}
    monai.bundle.run("review_page", **given)
    assert (cohort.parent / PAGE).is_file()
    monai.bundle.run("review_page", **given, page=str(tmp_path / "page #1.html"))
    assert (tmp_path / "page #1.html").is_file()
    monai.bundle.run("release", **given, review=str(new_review(normal_000001="label")))
    assert (tmp_path / "output" / "release" / ARCHIVE).is_file()
    monai.bundle.run("release", **given, unreviewed=True, formats="dicom", output_dir=str(tmp_path / "other"))
    assert (tmp_path / "other" / ARCHIVE).is_file()


def test_errors_are_one_line_each(cohort: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "monai.bundle", "run", "release", "--bundle_root", str(ROOT)]
    command += ["--config_file", CONFIG, "--cohort_dir", str(cohort), "--output_dir", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {cohort} was not reviewed. ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_options_are_checked_before_anything_else(cohort: Path, tmp_path: Path) -> None:
    wrong = {"review": str(tmp_path / "none.csv"), "formats": "jpeg", "unreviewed": "yes", "audit_dir": "nowhere"}
    with pytest.raises(RuntimeError) as caught:
        monai.bundle.run("release", config_file=CONFIG, bundle_root=str(ROOT), cohort_dir=str(cohort), **wrong)
    error = caught.value.__cause__
    assert isinstance(error, OptionError)
    assert [problem.split()[0] for problem in error.problems] == [
        "--review",
        "--audit_dir",
        "--unreviewed",
        "--formats",
    ]
