# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The DICOM objects of a cohort: its files or, where it has none, the bytes that ``export`` would write."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import SecondaryCaptureImageStorage

from bundle.cohort.contents import read_images
from bundle.cohort.dicom import dicom_bytes
from bundle.cohort.formats import FORMATS, PNG
from bundle.cohort.image import CohortImage
from bundle.cohort.ledger import CohortError
from bundle.pacs.server import Instance

__all__ = ["CURE", "dicom_objects"]

CURE = "Only a cohort as it was generated or received can be sent."


def dicom_objects(folder: Path, manifest: dict[str, Any]) -> Iterator[tuple[Instance, Dataset]]:
    """Yields the DICOM objects of a verified cohort, in the order of labels.csv.

    Args:
        folder: folder of the cohort.
        manifest: its manifest, from `bundle.cohort.writer.verify_cohort`.

    Raises:
        CohortError: a file was changed since it was verified; or a DICOM file does not show its image, or is not marked
            as synthetic.
    """
    for image, stem in read_images(folder, manifest, CURE):
        dataset = _dicom_object(image, folder, FORMATS["dicom"].name(stem), manifest["files"])
        uids = (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)
        yield Instance(FORMATS[PNG].name(stem), *map(str, uids)), dataset


def _dicom_object(image: CohortImage, folder: Path, name: str, files: dict[str, str]) -> Dataset:
    made = dicom_bytes(image)
    if name not in files:
        return dcmread(io.BytesIO(made))
    content = (folder / name).read_bytes()
    if hashlib.sha256(content).hexdigest() != files[name]:
        raise CohortError(f"{folder / name} was changed while it was read. Run the same command again.")
    try:
        dataset = dcmread(io.BytesIO(content))
        # An earlier version of this bundle may have written other bytes; so may whoever wrote a new manifest, and the
        # hash in an audit is that of the PNG files.
        if content == made or _shows(dataset, image):
            return dataset
    except (InvalidDicomError, AttributeError, ValueError, TypeError, KeyError, NotImplementedError):
        pass
    raise CohortError(f"{folder / name} does not show its image, or is not marked as synthetic. {CURE}")


def _shows(dataset: Dataset, image: CohortImage) -> bool:
    """Returns whether an object is marked as synthetic and has the pixels of an image."""
    return bool(
        dataset.SOPClassUID == SecondaryCaptureImageStorage
        and dataset.SyntheticData == "YES"
        and dataset.PatientIdentityRemoved == "YES"
        and str(dataset.PatientID).startswith("SYN-")
        and np.array_equal(dataset.pixel_array, image.pixels)
    )
