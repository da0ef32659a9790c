# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread, dcmwrite

from bundle.cohort.ledger import CohortError
from bundle.cohort.writer import verify_cohort
from bundle.pacs.objects import dicom_objects
from tests.cohort.test_export import make
from tests.cohort.test_writer import change, resealed


def contents(folder: Path) -> dict[str, bytes]:
    """The files that objects would be, by the names of their images."""
    files = {}
    for instance, dataset in dicom_objects(folder, verify_cohort(folder)):
        stream = io.BytesIO()
        dcmwrite(stream, dataset)
        files[instance.image] = stream.getvalue()
    return files


@pytest.mark.parametrize("channels", [1, 3])
def test_objects_are_the_files_that_export_writes_whether_it_has_or_not(tmp_path: Path, channels: int) -> None:
    plain, whole = make(tmp_path / "a", channels=channels), make(tmp_path / "b", ("dicom",), channels)
    found = contents(plain)
    assert len(found) == 5
    assert found == contents(whole)
    assert found == {f"images/{path.stem}.png": path.read_bytes() for path in (whole / "dicom").iterdir()}
    assert not (plain / "dicom").exists()


def test_objects_are_named_as_they_name_themselves(cohort: Path) -> None:
    for instance, dataset in dicom_objects(cohort, verify_cohort(cohort)):
        assert (instance.study, instance.series) == (dataset.StudyInstanceUID, dataset.SeriesInstanceUID)
        assert instance.uid == dataset.SOPInstanceUID
        assert np.array_equal(dataset.pixel_array, np.asarray(Image.open(cohort / instance.image)))


def edit(change_it: Callable[[Dataset], None]) -> Callable[[Path], None]:
    def edit_file(path: Path) -> None:
        dataset = dcmread(path)
        change_it(dataset)
        dataset.save_as(path)

    return edit_file


def invert(dataset: Dataset) -> None:
    dataset.PixelData = bytes(255 - value for value in dataset.PixelData)


@pytest.mark.parametrize(
    "spoil",
    [
        edit(invert),
        edit(lambda dataset: setattr(dataset, "PatientID", "4711")),
        edit(lambda dataset: setattr(dataset, "SyntheticData", "NO")),
        edit(lambda dataset: delattr(dataset, "SyntheticData")),
        edit(lambda dataset: delattr(dataset, "PixelData")),
        lambda path: path.write_bytes(b"no DICOM"),
        lambda path: path.write_bytes(b""),
    ],
)
def test_file_that_does_not_show_its_image_is_refused_whatever_the_manifest_says(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    folder = make(tmp_path / "cohort", ("dicom",))
    spoil(folder / "dicom" / "normal_000002.dcm")
    resealed(folder)
    with pytest.raises(CohortError, match=r"normal_000002\.dcm does not show its image, or is not marked as synthetic"):
        contents(folder)


def test_file_of_another_version_is_sent_as_it_is(tmp_path: Path) -> None:
    folder = make(tmp_path / "cohort", ("dicom",))
    path = folder / "dicom" / "normal_000002.dcm"
    edit(lambda dataset: setattr(dataset, "StudyDescription", "Synthetic"))(path)
    resealed(folder)
    assert contents(folder)["images/normal_000002.png"] == path.read_bytes()


@pytest.mark.parametrize("name", ["dicom/normal_000002.dcm", "images/normal_000002.png"])
def test_file_that_changes_after_its_verification_is_refused(tmp_path: Path, name: str) -> None:
    folder = make(tmp_path / "cohort", ("dicom",))
    manifest = verify_cohort(folder)
    change(folder / name)
    with pytest.raises(CohortError, match="was changed while it was read"):
        list(dicom_objects(folder, manifest))
