# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import getpass
import io
import platform
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from bundle.cohort.dicom import CODING_SCHEME, dicom_bytes
from bundle.cohort.image import CohortImage
from bundle.data.readers import decode, dicom_patient_id

LONG = "a class of grießlike opacities, longer than a code value and than a line of text may be"


def image(channels: int = 1, seed: int = 0, label_name: str = "tuberculosis") -> CohortImage:
    """An image with an odd number of bytes."""
    shape = (33, 31) if channels == 1 else (33, 31, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    return CohortImage(pixels, 1, label_name, "xray")


def dataset_of(given: CohortImage) -> FileDataset:
    return pydicom.dcmread(io.BytesIO(dicom_bytes(given)))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("extremes", [False, True])
def test_pixels_are_those_of_the_image(tmp_path: Path, channels: int, extremes: bool) -> None:
    given = image(channels)
    if extremes:
        given = replace(given, pixels=np.where(given.pixels > 127, 255, 0).astype(np.uint8))
    dataset = dataset_of(given)
    assert np.array_equal(dataset.pixel_array, given.pixels)
    assert dataset.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    (tmp_path / "a.dcm").write_bytes(dicom_bytes(given))
    planes = np.atleast_3d(given.pixels).transpose(2, 0, 1)
    assert np.array_equal(decode(tmp_path / "a.dcm", channels), np.divide(planes, 255.0, dtype=np.float32))


def test_every_grey_level_is_kept_to_the_bit(tmp_path: Path) -> None:
    given = replace(image(), pixels=np.arange(256, dtype=np.uint8).reshape(16, 16))
    (tmp_path / "a.dcm").write_bytes(dicom_bytes(given))
    assert np.array_equal(decode(tmp_path / "a.dcm", 1)[0], np.divide(given.pixels, 255.0, dtype=np.float32))


def test_file_says_that_it_is_synthetic(tmp_path: Path) -> None:
    dataset = dataset_of(image())
    assert dataset.SyntheticData == "YES"
    assert list(dataset.ImageType) == ["DERIVED", "SECONDARY"]
    assert dataset.ConversionType == "SYN"
    assert dataset.SOPClassUID == SecondaryCaptureImageStorage
    assert dataset.Modality == "OT"
    assert dataset.PatientID.startswith("SYN-")
    assert str(dataset.PatientName) == f"Synthetic^{dataset.PatientID.removeprefix('SYN-')}"
    assert dataset.PatientIdentityRemoved == "YES"
    assert "no patient was imaged" in dataset.DeidentificationMethod
    assert dataset.BurnedInAnnotation == "NO"
    (tmp_path / "a.dcm").write_bytes(dicom_bytes(image()))
    assert dicom_patient_id(tmp_path / "a.dcm") == dataset.PatientID


def test_elements_are_these_and_no_others() -> None:
    named = {element.keyword for element in dataset_of(image()) if not element.is_empty}
    assert named == {
        *("SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "SyntheticData", "Modality"),
        *("ConversionType", "Manufacturer", "CodingSchemeIdentificationSequence", "StudyDescription"),
        *("SeriesDescription", "AdmittingDiagnosesCodeSequence", "DerivationDescription", "PatientName", "PatientID"),
        *("PatientIdentityRemoved", "DeidentificationMethod", "StudyInstanceUID", "SeriesInstanceUID", "StudyID"),
        *("SeriesNumber", "InstanceNumber", "ImageComments", "SamplesPerPixel", "PhotometricInterpretation", "Rows"),
        *("Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "BurnedInAnnotation"),
        *("WindowCenter", "WindowWidth", "PixelData"),
    }
    empty = {element.keyword for element in dataset_of(image()) if element.is_empty}
    assert empty == {
        *("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientBirthDate", "PatientSex"),
        *("Laterality", "PatientOrientation"),
    }


def test_nothing_names_this_machine_its_user_or_its_programs() -> None:
    content = dicom_bytes(image()).lower()
    for secret in (platform.node(), getpass.getuser(), str(Path.cwd()), "pydicom", "python", pydicom.__version__):
        assert secret.lower().encode() not in content
    meta = dataset_of(image()).file_meta
    assert meta.ImplementationVersionName == "PLAN_BUNDLE"
    assert "SourceApplicationEntityTitle" not in meta


def test_class_is_a_code_and_plain_text() -> None:
    dataset = dataset_of(image())
    (code,) = dataset.AdmittingDiagnosesCodeSequence
    assert (code.CodeValue, code.CodingSchemeDesignator) == ("tuberculosis", CODING_SCHEME)
    assert code.CodeMeaning == "tuberculosis"
    (scheme,) = dataset.CodingSchemeIdentificationSequence
    assert scheme.CodingSchemeDesignator == CODING_SCHEME
    assert dataset.SeriesDescription == "Synthetic xray: tuberculosis"
    assert dataset.ImageComments == "Synthetic image of class tuberculosis (label 1)."


@pytest.mark.filterwarnings("error")
def test_long_class_name_is_whole_where_there_is_room() -> None:
    dataset = dataset_of(image(label_name=LONG))
    (code,) = dataset.AdmittingDiagnosesCodeSequence
    assert "CodeValue" not in code
    assert code.LongCodeValue == LONG
    assert (code.CodeMeaning, dataset.SeriesDescription) == (LONG[:63], f"Synthetic xray: {LONG}"[:63])
    assert LONG in dataset.ImageComments


def identifiers(given: CohortImage) -> set[str]:
    dataset = dataset_of(given)
    return {dataset.PatientID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID}


def test_equal_images_give_equal_bytes_and_other_images_other_identifiers() -> None:
    assert dicom_bytes(image()) == dicom_bytes(image())
    others = [
        image(seed=1),
        replace(image(), label=0),
        replace(image(), label_name="normal"),
        replace(image(), modality="mine"),
        replace(image(), pixels=image().pixels.reshape(31, 33)),
    ]
    sets = [identifiers(given) for given in (image(), *others)]
    assert len(set.union(*sets)) == 4 * len(sets)
    assert all(UID(name).is_valid and name.startswith("2.25.") for name in set.union(*sets) if "SYN" not in name)


@pytest.mark.parametrize("name", ["tuberculosis", LONG])
@pytest.mark.parametrize("channels", [1, 3])
def test_validators_of_dicom_find_no_error(tmp_path: Path, channels: int, name: str) -> None:
    for program, package in (("dciodvfy", "dicom3tools"), ("dcmdump", "dcmtk")):
        if shutil.which(program) is None:
            pytest.skip(f"needs the program {program} (Debian package {package})")
    (tmp_path / "a.dcm").write_bytes(dicom_bytes(image(channels, label_name=name)))
    done = subprocess.run(["dciodvfy", "a.dcm"], cwd=tmp_path, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).splitlines()
    assert "SCImage" in lines
    # SyntheticData is of DICOM 2023, and the releases of dciodvfy up to 2024 do not know it.
    younger = [line for line in lines if re.search(r"Error - .*not a recognized standard attribute", line)]
    assert all("(0x0008,0x001c)" in line for line in younger)
    assert [line for line in lines if "Error" in line and line not in younger] == []
    done = subprocess.run(["dcmdump", "a.dcm"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
