# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Reads a DICOM file as an upright image with square pixels; black is 0 and white is 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from bundle.data.dicom.colour import read_colour
from bundle.data.dicom.grey import read_grey
from bundle.data.dicom.stored import check_inflated, load, read_header
from bundle.data.dicom.tags import tag_name, tag_numbers, tag_values, wrong_tag
from bundle.data.formats import ReadError, is_dicom, room_for
from bundle.data.pixels import square_pixels

__all__ = ["dicom_patient_id", "read_dicom"]

#: Tags of the physical size of a pixel as (height, width), in order of priority.
_ASPECT_TAGS = ("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")

#: Opposite directions in the patient; the first is on the right or at the bottom of an upright image.
_AXES = ("LR", "FH", "PA")


def read_dicom(path: Path, channels: int, strict: bool) -> tuple[NDArray[Any], str]:
    """Reads a DICOM image of one frame.

    Args:
        path: path of the file.
        channels: number of channels to return, 1 or 3; colour is converted to luma for 1.
        strict: whether to refuse colour images where one channel is requested.

    Returns:
        Image [H, W] or [H, W, 3], float32, black is 0 and white is 1; and, for error messages, the tags that are the
        probable cause if it is blank ("" for none).

    Raises:
        ReadError: the file holds no image, several or a too large one, or a tag is missing or wrong.
    """
    with room_for(*read_header(path)):
        dataset = load(path)
        suspect = ""
        if dataset.PhotometricInterpretation in ("MONOCHROME1", "MONOCHROME2"):
            image, suspect = read_grey(dataset)
        else:
            image = read_colour(dataset, channels, strict)
        return _upright(dataset, _square(dataset, image)).astype(np.float32), suspect


def _square(dataset: Dataset, image: NDArray[Any]) -> NDArray[Any]:
    for keyword in _ASPECT_TAGS:
        sides = tag_numbers(dataset, keyword)
        if len(sides) == 1:
            raise wrong_tag(keyword, "holds one number, where the height and the width of a pixel belong")
        if sides:
            return square_pixels(image, sides[0], sides[1], f"the tag {tag_name(keyword)}")
    return image


def _upright(dataset: Dataset, image: NDArray[Any]) -> NDArray[Any]:
    """Turns an image upright by PatientOrientation: left to the right, feet to the bottom (PS3.3, C.7.6.1.1.1).

    Lateral images are not mirrored, axial ones have the back at the bottom, and mammograms are left unchanged, since
    their views have conventions of their own.
    """
    values = [str(value).strip().upper() for value in tag_values(dataset, "PatientOrientation")]
    if not any(values) or str(dataset.get("Modality")) == "MG":
        return image
    # The first letter is the main direction: "FL" is towards the feet and slightly to the left.
    axes = [next((axis for axis in _AXES if value and value[0] in axis), "") for value in values]
    if len(axes) != 2 or "" in axes or axes[0] == axes[1]:
        shown = "\\".join(values)
        cure = "Correct the tag PatientOrientation, or delete it where the image is stored upright"
        message = f"the tag {tag_name('PatientOrientation')} is {shown[:40]!r}, from which upright cannot be told"
        raise ReadError("wrong tag", message, cure)
    ends = [value[0] for value in values]
    if axes[1] == "LR" or (axes[0] == "FH" and axes[1] == "PA"):
        image, ends, axes = np.swapaxes(image, 0, 1), ends[::-1], axes[::-1]
    if ends[0] == "R":
        image = image[:, ::-1]
    if ends[1] in ("H", "A"):
        image = image[::-1]
    return image


def dicom_patient_id(path: Path) -> str | None:
    """Returns the PatientID of a DICOM file; None if it is empty or absent or the file is no readable DICOM."""
    try:
        if not is_dicom(path):
            return None
        check_inflated(path)
        header = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=["PatientID"])
        return str(header.get("PatientID") or "").strip() or None
    except Exception:  # unreadable files are reported when their pixels are read
        return None
