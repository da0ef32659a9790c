# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""What tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import Dataset

from bundle.cohort.writer import verify_cohort
from bundle.pacs.objects import dicom_objects
from bundle.pacs.server import Instance
from tests.cohort.test_export import make
from tests.pacs_servers import StoreServer, StowServer, store_server, stow_server


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, in seconds, none of which is made."""
    found: list[float] = []
    monkeypatch.setattr("bundle.pacs.patience.sleep", found.append)
    return found


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Five images, without DICOM files."""
    return make(tmp_path / "run" / "cohort")


@pytest.fixture
def stow() -> Iterator[StowServer]:
    with stow_server() as server:
        yield server


@pytest.fixture
def store() -> Iterator[StoreServer]:
    with store_server() as server:
        yield server


@pytest.fixture
def objects(cohort: Path) -> list[tuple[Instance, Dataset]]:
    """The objects of these images."""
    return list(dicom_objects(cohort, verify_cohort(cohort)))
