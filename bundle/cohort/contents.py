# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Reads a cohort that exists, for commands that pass it on or judge it."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from bundle.class_names import class_names_problem
from bundle.cohort.image import CohortImage
from bundle.cohort.ledger import CohortError
from bundle.cohort.writer import FILTERED, FILTERED_FILE, MANIFEST, read_labels

__all__ = ["cohort_folder", "read_filtered", "read_images"]


def cohort_folder(cohort_dir: str | os.PathLike[str]) -> Path:
    """Returns the absolute path of a cohort; the folder of the run that made it is refused.

    Args:
        cohort_dir: folder of the cohort.

    Raises:
        CohortError: the folder holds a cohort and private files beside it.
    """
    folder = Path(cohort_dir).resolve()
    if (folder / "cohort" / MANIFEST).is_file():
        raise CohortError(f"{folder} holds a cohort and, beside it, what is private. Name {folder / 'cohort'}.")
    return folder


def read_images(folder: Path, manifest: dict[str, Any], cure: str) -> Iterator[tuple[CohortImage, str]]:
    """Yields the images of a verified cohort with the stems of their names, in the order of labels.csv.

    Args:
        folder: folder of the cohort.
        manifest: its manifest, from `bundle.cohort.writer.verify_cohort`.
        cure: advice that ends the message of an error.

    Raises:
        CohortError: a file was changed since it was verified, is no 8-bit PNG, grey or RGB, or the name of a class
            cannot be used.
    """
    rows = read_labels(folder)
    if problem := class_names_problem(list(dict.fromkeys(label_name for *_, label_name in rows))):
        raise CohortError(f"{folder} has names of classes that cannot be used: {problem}. {cure}")
    for name, label, label_name in rows:
        content = (folder / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != manifest["files"].get(name):
            raise CohortError(f"{folder / name} was changed while it was read. Run the same command again.")
        with Image.open(io.BytesIO(content)) as picture:
            if picture.format != "PNG" or picture.mode not in ("L", "RGB"):
                raise CohortError(f"{folder / name} is no PNG of 8 bits, grey or RGB. {cure}")
            pixels = np.array(picture)
        yield CohortImage(pixels, label, label_name, str(manifest.get("modality", ""))), PurePosixPath(name).stem


def read_filtered(folder: Path, manifest: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Returns the removals of images by audits, from the manifest of a cohort or, without one, from a file in it.

    A file that was not written by an audit counts as none.

    Args:
        folder: folder of the cohort.
        manifest: content of its manifest; empty if there is none or it does not match the files.
    """
    if FILTERED in manifest:
        return tuple(manifest[FILTERED])
    try:
        content = json.loads((folder / FILTERED_FILE).read_text(encoding="utf-8"))
        entries = tuple(
            {
                "removed": int(entry["removed"]),
                "images": int(entry["images"]),
                "cohort_sha256": str(entry["cohort_sha256"]),
                "networks": {str(name): str(value) for name, value in entry["networks"].items()},
            }
            for entry in content
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ()
    return entries
