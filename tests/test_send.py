# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""`send` as a command, and against Orthanc; its parts are tested in tests/pacs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import monai.bundle
import numpy as np
import pytest
from dicomweb_client.web import DICOMwebClient
from PIL import Image
from pydicom import Dataset
from requests.auth import HTTPBasicAuth

from bundle.cohort.writer import verify_cohort, write_cohort
from bundle.options import OptionError
from bundle.pacs.dicomweb import DicomWebServer
from bundle.pacs.dimse import DimseServer
from bundle.pacs.objects import dicom_objects
from bundle.pacs.sending import send
from bundle.pacs.server import PacsError, Server
from tests.auditing.test_clearance import audited
from tests.cohort.test_export import make
from tests.cohort.test_writer import NAMES, images
from tests.conftest import ROOT
from tests.pacs_servers import ORTHANC, PASSWORD, PLUGIN, USER, Orthanc, stow_server

CONFIG = str(ROOT / "configs" / "send.json")
LOGIN = {"DICOMWEB_USER": USER, "DICOMWEB_PASSWORD": PASSWORD}


def command(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "monai.bundle", "run", "send", "--bundle_root", str(ROOT), "--config_file", CONFIG]
    known = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([*call, *options], env=known, capture_output=True, text=True)


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert "Traceback" not in done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


def test_configuration_sends_a_cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = make(tmp_path / "run #1" / "cohort")
    audited(cohort.parent / "audit", cohort)
    monkeypatch.chdir(tmp_path)
    with stow_server() as server:
        options = {"config_file": CONFIG, "bundle_root": str(ROOT), "cohort_dir": str(cohort), "url": f"{server.url}/"}
        monai.bundle.run("send", **options)
        assert len(server.stored) == 5
        assert len(list((tmp_path / "output" / "sent").glob("stored-*.csv"))) == 1
        monai.bundle.run("send", **options, output_dir=str(tmp_path / "other"), confirm=False, retries=0)
        assert len(server.requests) == 10
        with pytest.raises(RuntimeError) as caught:
            monai.bundle.run("send", **{**options, "url": server.url.replace("dicom-web", "x")})
        assert "does not take images (HTTP 404 Not Found)" in str(caught.value.__cause__)


def test_options_are_checked_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        monai.bundle.run("send", config_file=CONFIG, bundle_root=str(ROOT), port=0, aet="ORTHANC", url="localhost:8042")
    error = caught.value.__cause__
    assert isinstance(error, OptionError)
    assert [problem.partition(" must")[0] for problem in error.problems] == ["--cohort_dir", "--port", "--url"]


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    if ORTHANC is None or not PLUGIN.exists():
        pytest.skip("needs Orthanc and its DICOMweb plugin (Debian: apt-get install orthanc orthanc-dicomweb)")
    server = Orthanc(tmp_path)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """64 images, without DICOM files."""
    write_cohort(tmp_path / "cohort", images(numbers=(32, 32)), NAMES, {"modality": "xray"}, "")
    return tmp_path / "cohort"


def objects(cohort: Path) -> dict[str, Dataset]:
    """The objects of a cohort, by the names of its images."""
    return {instance.image: dataset for instance, dataset in dicom_objects(cohort, verify_cohort(cohort))}


def way(name: str, server: Orthanc) -> tuple[type[DicomWebServer] | type[DimseServer], Callable[[], Server]]:
    """The class of a client, and what makes one."""
    if name == "STOW-RS":
        return DicomWebServer, lambda: DicomWebServer(server.url, None, LOGIN)
    return DimseServer, lambda: DimseServer("ORTHANC", "localhost", server.dicom_port, "PLAN", False, None)


@pytest.mark.integration
def test_orthanc_stores_finds_and_gives_back_what_the_command_sends(
    orthanc: Orthanc, cohort: Path, tmp_path: Path
) -> None:
    audit = audited(tmp_path / "audit", cohort)
    options = ["--cohort_dir", str(cohort), "--url", orthanc.url, "--output_dir", str(tmp_path / "sent")]
    assert errors(command(*options)) == [
        f"error: {orthanc.url} asks who sends (HTTP 401 Unauthorized). Set the environment variables DICOMWEB_USER and "
        "DICOMWEB_PASSWORD, or DICOMWEB_TOKEN; if they are set, they are wrong. Nothing was sent."
    ]
    done = command(*options, **LOGIN)
    assert done.returncode == 0, done.stderr
    assert f"Passed its audit: {audit}" in done.stdout
    assert f"64 images of {cohort} are stored by {orthanc.url}: 64 were sent now, 0 earlier." in done.stdout
    assert orthanc.get("statistics")["CountInstances"] == 64
    client = DICOMwebClient(orthanc.url)
    client._session.auth = HTTPBasicAuth(USER, PASSWORD)
    for name, dataset in objects(cohort).items():
        (study,) = client.search_for_studies(search_filters={"PatientID": dataset.PatientID})
        assert study["0020000D"]["Value"] == [dataset.StudyInstanceUID]
        (back,) = client.retrieve_study(dataset.StudyInstanceUID)
        assert (back.SOPInstanceUID, back.SyntheticData) == (dataset.SOPInstanceUID, "YES")
        assert np.array_equal(back.pixel_array, np.asarray(Image.open(cohort / name)))


@pytest.mark.integration
@pytest.mark.parametrize("name", ["STOW-RS", "C-STORE"])
@pytest.mark.parametrize("comes_back", [False, True])
def test_orthanc_killed_in_the_middle_has_every_image_once_in_the_end(
    orthanc: Orthanc, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, comes_back: bool
) -> None:
    kind, new_client = way(name, orthanc)
    store, attempts = kind.store, []

    def kill_and_store(self: Server, dataset: Dataset) -> None:
        attempts.append(dataset.SOPInstanceUID)
        if len(attempts) == 21:
            orthanc.kill()
        store(self, dataset)  # type: ignore[arg-type]

    monkeypatch.setattr(kind, "store", kill_and_store)
    pauses: list[float] = []

    def restart(seconds: float) -> None:
        if not pauses and comes_back:
            orthanc.start()
        pauses.append(seconds)

    monkeypatch.setattr("bundle.pacs.patience.sleep", restart)
    if not comes_back:
        with pytest.raises(PacsError, match=r"Connection refused.* 20 of 64 images are stored\. The same command resu"):
            send(cohort, new_client(), tmp_path / "sent", unaudited=True, retries=2)
        assert pauses == [1, 2]
        orthanc.start()
    send(cohort, new_client(), tmp_path / "sent", unaudited=True)
    wanted = [dataset.SOPInstanceUID for dataset in objects(cohort).values()]
    # Only the object that was on its way was tried more than once.
    assert list(dict.fromkeys(attempts)) == wanted
    assert set(attempts[:20]).isdisjoint(attempts[20:])
    assert orthanc.get("statistics")["CountInstances"] == len(orthanc.arrivals()) == len(set(orthanc.arrivals())) == 64
    stored = orthanc.get("instances", expand=True, requestedTags="")
    assert sorted(entry["MainDicomTags"]["SOPInstanceUID"] for entry in stored) == sorted(wanted)


@pytest.mark.integration
def test_orthanc_has_another_title(orthanc: Orthanc, cohort: Path, tmp_path: Path) -> None:
    client = DimseServer("WRONG", "localhost", orthanc.dicom_port, "PLAN", False, None)
    with pytest.raises(PacsError, match=r"has another AE title than WRONG\. Nothing was sent\."):
        send(cohort, client, tmp_path / "sent", unaudited=True)
