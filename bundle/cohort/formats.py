# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""File formats of a cohort's images. To support another one, write its encoder and add it to `FORMATS`."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from PIL import Image

from bundle.cohort.dicom import dicom_bytes
from bundle.cohort.image import CohortImage
from bundle.cohort.ledger import CohortError
from bundle.cohort.nifti import nifti_bytes
from bundle.figures import png_bytes
from bundle.option_types import closest

__all__ = ["FORMATS", "PNG", "Format", "chosen_formats", "formats_of", "formats_problem"]

#: The format that every cohort has: labels.csv names its files, and audits read them.
PNG = "png"


@dataclass(frozen=True)
class Format:
    """A file format of a cohort's images.

    Attributes:
        title: name of the format, for messages.
        folder: folder of the files, in that of the cohort.
        suffix: their file extension.
        encode: returns the bytes of a file; equal images give equal bytes.
        share: typical size of a file at 128 px, as a share of the image's raw size.
    """

    title: str
    folder: str
    suffix: str
    encode: Callable[[CohortImage], bytes]
    share: float

    def name(self, stem: str) -> str:
        """Returns the name of an image's file, relative to the cohort.

        Args:
            stem: name without folder and extension, which an image has in all formats.
        """
        return f"{self.folder}/{stem}{self.suffix}"

    def names(self, images: Iterable[str]) -> set[str]:
        """Returns the names that files of this format have if the PNG files have the names in ``images``."""
        return {self.name(PurePosixPath(image).stem) for image in images}


def _png(image: CohortImage) -> bytes:
    # Radiographs rarely repeat strings of pixels: run-length encoding gives smaller files in half the time.
    return png_bytes(Image.fromarray(image.pixels), compress_type=zlib.Z_RLE)


#: File formats by the name that options use; PNG comes first.
FORMATS: dict[str, Format] = {
    PNG: Format("PNG", "images", ".png", _png, 0.7),
    "dicom": Format("DICOM", "dicom", ".dcm", dicom_bytes, 1.1),
    "nifti": Format("NIfTI", "nifti", ".nii.gz", nifti_bytes, 0.8),
}


def _as_names(formats: Any) -> list[Any]:
    """Returns the entries of an option ``formats``: a list, or a text that separates them by commas."""
    if isinstance(formats, list | tuple):
        return list(formats)
    return [name.strip() for name in formats.split(",")] if isinstance(formats, str) else [formats]


def formats_problem(formats: Any) -> str | None:
    """Returns what is wrong with a value of the option ``formats``, as a predicate of its name, or None."""
    names, listed = _as_names(formats), ", ".join(FORMATS)
    unknown = [name for name in names if name not in tuple(FORMATS)]
    if not names or "" in unknown:
        return f"must name some of {listed}, as in dicom,nifti, not {formats!r}. PNG files are always written."
    if unknown:
        nearest = closest(str(unknown[0]).lower(), FORMATS)
        return (
            f"must name some of {listed}, not {unknown[0]!r}. The nearest is {nearest}. PNG files are always written."
        )
    return None


def chosen_formats(formats: Any) -> tuple[str, ...]:
    """Returns the formats that an option asks for, each once, in the order of `FORMATS`; PNG is always one of them.

    Args:
        formats: names in a list, or in a text that separates them by commas.

    Raises:
        CohortError: a name is not one of `FORMATS`, or there is none.
    """
    if problem := formats_problem(formats):
        raise CohortError(f"formats {problem}")
    names = {PNG, *_as_names(formats)}
    return tuple(name for name in FORMATS if name in names)


def formats_of(files: Iterable[str]) -> tuple[str, ...]:
    """Returns the formats of which there is a file among the names of a cohort's files."""
    folders = {name.partition("/")[0] for name in files if "/" in name}
    return tuple(name for name, form in FORMATS.items() if form.folder in folders)
