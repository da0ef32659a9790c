# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""`export` as a command; what it does is tested in tests/cohort/test_export.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cohort.test_export import BOTH, make
from tests.cohort.test_writer import digest
from tests.conftest import ROOT


def export(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "monai.bundle", "run", "export", "--bundle_root", str(ROOT)]
    command += ["--config_file", str(ROOT / "configs" / "export.json"), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("formats", ["dicom,nifti", "['png','nifti','dicom']"])
def test_command_takes_a_list_or_a_text(tmp_path: Path, formats: str) -> None:
    folder = make(tmp_path / "run #1" / "cohort")
    done = export("--cohort_dir", str(folder), "--formats", formats)
    assert done.returncode == 0, done.stderr
    assert f"{folder} has DICOM and NIfTI files now: 18 files, each as the manifest says." in done.stdout
    assert digest(folder) == digest(make(tmp_path / "whole" / "cohort", BOTH))


def test_errors_are_one_line_each(tmp_path: Path) -> None:
    folder = make(tmp_path / "cohort")
    (folder / "labels.csv").unlink()
    done = export("--cohort_dir", str(folder))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"error: {folder} is not the cohort that its manifest describes: labels.csv is absent. Only a cohort as it was "
        f"generated or received can be exported."
    )
    assert "Traceback" not in done.stderr
    done = export("--formats", "dcm")
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [
        "error: --cohort_dir must be given.",
        "error: --formats must name some of png, dicom, nifti, not 'dcm'. The nearest is dicom. PNG files are always "
        "written.",
    ]
