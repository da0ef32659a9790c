# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Decodes image files to upright images of one or three channels; black is 0 and white is 1.

MONAI's own readers swap the axes of PNG, JPEG and DICOM images, do not invert MONOCHROME1, and ignore EXIF orientation
and the VOI window; :class:`UprightReader` replaces them in ``LoadImaged``.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from numpy.typing import NDArray

from bundle.data.dicom import dicom_patient_id, read_dicom
from bundle.data.formats import (
    IMAGE_SUFFIXES,
    SUPPORTED_FORMATS,
    ReadError,
    check_format,
    image_format,
    image_stem,
    image_suffix,
    is_dicom,
)
from bundle.data.nifti import read_nifti
from bundle.data.pictures import read_picture
from bundle.data.pixels import ROBUST_PERCENTILES, check_pixels, is_coloured

__all__ = [
    "IMAGE_SUFFIXES",
    "MIN_SIDE",
    "ROBUST_PERCENTILES",
    "SUPPORTED_FORMATS",
    "ReadError",
    "UprightReader",
    "decode",
    "dicom_patient_id",
    "image_format",
    "image_stem",
    "image_suffix",
    "is_dicom",
    "pixel_sha256",
]

#: Smallest shorter side of an image, in pixels.
MIN_SIDE = 16

#: Words in the messages of decoders that indicate a truncated file.
_CUT = re.compile(
    r"truncat|\b(expected|end of|ended|broken|length of the pixel data|not enough|less bytes|requires a buffer)\b",
    re.IGNORECASE,
)


def pixel_sha256(image: NDArray[np.float32]) -> str:
    """Returns the SHA-256 of a decoded image's shape and pixels, independent of the file's name and encoding."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def decode(path: str | Path, channels: int, strict: bool = False) -> NDArray[np.float32]:
    """Reads one PNG, JPEG, TIFF, BMP, WebP, DICOM or 2D NIfTI file.

    - Scale: 8-bit images are divided by 255. Deeper images are scaled from the 0.5th to the 99.5th percentile of their
      own values (of all channels together) to [0, 1], at full bit depth.
    - DICOM: rescale slope and intercept (or the modality LUT) are applied, then the VOI LUT or the first window, whose
      output range becomes [0, 1]. Without a window, images are scaled like those of PNG. MONOCHROME1 is inverted, and
      padding is black (DICOM PS3.3, C.7.6.3.1.2, C.11.1 and C.11.2). Empty tags count as absent.
    - Orientation: EXIF orientation, PatientOrientation of DICOM and the affine of NIfTI are applied. NIfTI without an
      orientation is taken as (x to the right, y down), as ITK writes it.
    - Pixels that are not square by the header of DICOM or NIfTI are resampled
      (:func:`bundle.data.pixels.square_pixels`).
    - Colour is converted to luma (ITU-R 601) for one channel, grey is repeated for three; transparent parts are black.

    Args:
        path: path of the file.
        channels: number of channels to return, 1 or 3.
        strict: whether to refuse colour images for one channel and grey images for three.

    Returns:
        float32 [channels, H, W] in [0, 1].

    Raises:
        ReadError: the file is absent, empty, damaged, blank, too small or too large, no 2D image, holds NaN, or has a
            wrong extension or a wrong tag; or `strict` refuses its colour or lack of colour.
    """
    file, suspect = Path(path), ""
    try:
        form = check_format(file)
        if form == "DICOM":
            image, suspect = read_dicom(file, channels, strict)
        elif form == "NIfTI":
            image = read_nifti(file, channels, strict)
        else:
            image = read_picture(file, form, channels, strict)
        if strict and channels == 3 and (image.ndim == 2 or not is_coloured(image)):
            cure = "Remove it, or name the modality that these images are of"
            raise ReadError("grey", "shows no colour, where the modality has three channels", cure)
    except ReadError:
        raise
    except PermissionError as error:
        raise ReadError("unreadable", "this user may not read the file", "Allow it (chmod u+r)") from error
    except Exception as error:
        # Each decoder has its own exceptions for damaged files; only their text distinguishes truncated files.
        text = " ".join(str(error).split()) or type(error).__name__
        if _CUT.search(text) or isinstance(error, EOFError):
            raise ReadError("truncated", f"the file is cut off ({text})", "Copy it again from the source") from error
        raise ReadError("unreadable", f"cannot be decoded ({text})", "Export it again, or remove it") from error
    if min(image.shape[:2]) < MIN_SIDE:
        raise ReadError("too small", f"only {image.shape[1]} x {image.shape[0]} pixels", "Use the original image")
    check_pixels(image, suspect)
    image = image[..., None] if image.ndim == 2 else image
    planes = np.moveaxis(np.broadcast_to(image, (*image.shape[:2], channels)), -1, 0)
    return np.clip(planes, 0.0, 1.0, dtype=np.float32, out=np.empty(planes.shape, np.float32), casting="same_kind")


class UprightReader(ImageReader):
    """MONAI image reader around :func:`decode`, for ``LoadImaged(reader=UprightReader(channels))``.

    Args:
        channels: number of channels to return, 1 or 3.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Returns whether all files are of supported formats, by file extension or content."""
        names = [filename] if isinstance(filename, (str, os.PathLike)) else filename
        return all(image_format(Path(name)) is not None for name in names)

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Path:
        """Returns the path; ``get_data`` decodes the file, since LoadImaged swallows errors that are raised here."""
        return Path(data if isinstance(data, (str, os.PathLike)) else data[0])

    def get_data(self, img: Path) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Decodes the file; returns the image, float32 [C, H, W] in [0, 1], and its metadata."""
        image = decode(img, self.channels)
        return image, {"spatial_shape": np.array(image.shape[1:]), "original_channel_dim": 0}
