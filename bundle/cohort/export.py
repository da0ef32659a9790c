# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The command ``export``: adds the images of a cohort in further file formats.

Whenever an export is killed, the cohort holds what its manifest says: the manifest first lists the new files as ones
that may be absent, then they are moved into the cohort, then the manifest lists them like all others.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from bundle.cohort.contents import cohort_folder, read_images
from bundle.cohort.formats import FORMATS, PNG, chosen_formats, formats_of
from bundle.cohort.writer import ADDING, MANIFEST, image_names, sealed_manifest, verify_cohort
from bundle.files import flush_folder, temporary_folder
from bundle.lock import folder_lock
from bundle.markup import printable

__all__ = ["add_formats", "export", "is_to_change"]

CURE = "Only a cohort as it was generated or received can be exported."


def export(cohort_dir: str | os.PathLike[str], formats: Any) -> None:
    """Verifies a cohort and adds its images in further file formats.

    Args:
        cohort_dir: folder of the cohort.
        formats: file formats, see `bundle.cohort.formats.chosen_formats`.

    Raises:
        CohortError: a format is unknown, or the folder is not as its manifest says.
        InUseError: another run adds files to the cohort.
        OSError: a file cannot be written, for example because the disk is full; the cohort stays as it was.
    """
    add_formats(cohort_folder(cohort_dir), chosen_formats(formats), CURE)


def is_to_change(manifest: dict[str, Any], formats: Sequence[str]) -> bool:
    """Returns whether a cohort lacks files in one of the formats, or an export of it was interrupted."""
    return ADDING in manifest or not set(formats) <= set(formats_of(manifest["files"]))


def add_formats(folder: Path, formats: Sequence[str], cure: str) -> None:
    """Verifies a cohort and adds its images in the formats that it lacks; the outcome is printed.

    The files are those that `bundle.cohort.writer.write_cohort` writes if it is given all formats at once.

    Args:
        folder: folder of the cohort.
        formats: names of file formats.
        cure: advice that ends the message if the cohort is not as its manifest says.

    Raises:
        CohortError: see `export`.
        InUseError: see `export`.
        OSError: see `export`.
    """
    with folder_lock(folder):
        manifest = verify_cohort(folder, cure)
        present = formats_of(manifest["files"])
        added = [name for name in formats if name not in present]
        count = len(manifest["files"])
        if is_to_change(manifest, formats):
            count += _add(folder, manifest, added)
    shown = added or [name for name in formats if name != PNG] or [PNG]
    named = " and ".join(FORMATS[name].title for name in shown)
    what = f"has {named} files {'now' if added else 'already'}"
    print(f"{printable(str(folder))} {what}: {count} files, each as the manifest says.")


def _add(folder: Path, manifest: dict[str, Any], formats: Sequence[str]) -> int:
    """Writes files beside the cohort and moves them into it; returns their number."""
    _remove_remains(folder, manifest)
    manifest = {key: value for key, value in manifest.items() if key != ADDING}
    files = manifest["files"]
    with temporary_folder(folder) as temporary:
        for name in formats:
            (temporary / FORMATS[name].folder).mkdir()
        added = {}
        images = read_images(folder, manifest, CURE) if formats else ()
        for image, stem in tqdm(images, "writing", len(image_names(files)), unit="image", disable=not formats):
            for form in (FORMATS[name] for name in formats):
                content = form.encode(image)
                (temporary / form.name(stem)).write_bytes(content)
                added[form.name(stem)] = hashlib.sha256(content).hexdigest()
        before, after = temporary / "before.json", temporary / "after.json"
        before.write_text(sealed_manifest({**manifest, ADDING: added}, files), encoding="utf-8")
        after.write_text(sealed_manifest(manifest, {**files, **added}), encoding="utf-8")
        # All that takes space is on disk before the cohort is touched.
        flush_folder(temporary)
        before.replace(folder / MANIFEST)
        for name in formats:
            (temporary / FORMATS[name].folder).replace(folder / FORMATS[name].folder)
        after.replace(folder / MANIFEST)
        flush_folder(folder)
    return len(added)


def _remove_remains(folder: Path, manifest: dict[str, Any]) -> None:
    """Removes the files that an interrupted export was adding, which the manifest allows to be absent."""
    names = manifest.get(ADDING, {}).keys() - manifest["files"].keys()
    for name in names:
        (folder / name).unlink(missing_ok=True)
    for parent in {str(PurePosixPath(name).parent) for name in names}:
        with suppress(OSError):  # it is absent, or holds other files
            (folder / parent).rmdir()
