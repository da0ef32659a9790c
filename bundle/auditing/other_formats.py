# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Files that show a cohort's images once more, in further formats: compared with the images, and not judged again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bundle.cohort.formats import FORMATS, PNG, formats_of
from bundle.data.errors import Problem
from bundle.data.listing import FolderListing
from bundle.data.readers import ReadError, decode, image_stem, pixel_sha256

__all__ = ["copy_problem", "other_formats"]


def other_formats(listing: FolderListing, manifest: Mapping[str, Any]) -> dict[Path, Path]:
    """Returns the files of a cohort in other formats than PNG, each with the image that it must show.

    Args:
        listing: listing of the cohort's folder.
        manifest: content of its manifest, which matches the files; empty if there is none or it does not.
    """
    files = manifest.get("files", {})
    folders = {listing.folder / FORMATS[name].folder for name in formats_of(files) if name != PNG}
    return {
        path: listing.folder / FORMATS[PNG].name(image_stem(path)) for path in listing.images if path.parent in folders
    }


def copy_problem(name: str, path: Path, image: Path, digest: str, channels: int) -> Problem | None:
    """Compares a file with the image that it must show.

    Args:
        name: name of the file relative to the cohort, for the message.
        path: path of the file.
        image: path of the image.
        digest: SHA-256 of the image's decoded pixels.
        channels: number of channels, 1 or 3.

    Returns:
        The problem, or None if the pixels are equal.
    """
    try:
        if pixel_sha256(decode(path, channels, strict=True)) == digest:
            return None
    except ReadError as error:
        return Problem(name, error.kind, error.message, error.cure)
    message = f"does not show the pixels of {image.name}, which would be judged in its place"
    return Problem(
        name, "not judged", message, f"Remove the folder {path.parent.name} from the cohort, and audit again"
    )
