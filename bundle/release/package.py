# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The cohort that a release consists of, and its archive."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from bundle.cohort.contents import read_images
from bundle.cohort.formats import FORMATS, PNG
from bundle.cohort.ledger import CohortError
from bundle.cohort.writer import MANIFEST, SHEET_IMAGES, image_names, images_sha256, seal_cohort, verify_cohort
from bundle.files import atomic_write, sha256_file, sweep_temporary, temporary_folder
from bundle.markup import printable
from bundle.release.archive import write_archive

__all__ = ["CURE", "Package"]

CURE = "Only a cohort as it was generated or received can be released."


@dataclass(frozen=True)
class Package:
    """What is to be released of a cohort.

    Attributes:
        folder: folder of the whole cohort.
        manifest: its manifest, compared with the files before.
        kept: names of the images that leave.
        released: manifest of the release, without its files.
        datasheet: datasheet of the release.
    """

    folder: Path
    manifest: dict[str, Any]
    kept: frozenset[str]
    released: dict[str, Any]
    datasheet: str

    def write(self, target: Path, formats: Sequence[str]) -> bool:
        """Writes the archive.

        Args:
            target: archive to write, in a folder that exists.
            formats: file formats of the images, PNG among them.

        Returns:
            Whether it was not there already.

        Raises:
            CohortError: another archive is there, or the cohort was changed in the meantime.
            OSError: a file cannot be read or written.
        """
        sweep_temporary(target.parent)
        with temporary_folder(target) as temporary, atomic_write(target) as archive:
            folder = temporary / "cohort"
            self.write_folder(folder, formats)
            sealed = verify_cohort(folder)
            files = {**sealed["files"], MANIFEST: sha256_file(folder / MANIFEST)}
            # Whoever unpacks several releases needs folders of different names.
            write_archive(archive, folder, files, f"release-{images_sha256(sealed)[:10]}")
            is_new = not target.exists()
            if not is_new and sha256_file(target) != sha256_file(archive):
                raise CohortError(
                    f"{printable(str(target))} is another release: of another cohort, review, audit or choice of "
                    "formats. Name another output_dir, or move it away."
                )
        return is_new

    def write_folder(self, target: Path, formats: Sequence[str]) -> None:
        """Writes the cohort that the archive holds.

        PNG files are copied, so that they are the files that were audited. The others are made of their pixels: no
        audit answers for such files in the whole cohort. Images are numbered anew: gaps would tell which ones were
        rejected, next to which others of the same path lie.

        Args:
            target: folder to create.
            formats: file formats of the images, PNG among them.

        Raises:
            CohortError: the cohort was changed since it was verified.
            OSError: a file cannot be read or written.
        """
        for form in formats:
            (target / FORMATS[form].folder).mkdir(parents=True)
        rows: list[tuple[str, int, str]] = []
        files: dict[str, str] = {}
        numbers: Counter[str] = Counter()
        sheet: dict[str, list[Tensor]] = {}
        images, total = read_images(self.folder, self.manifest, CURE), len(image_names(self.manifest["files"]))
        for image, before in tqdm(images, "writing", total, unit="image"):
            source = FORMATS[PNG].name(before)
            if source not in self.kept:
                continue
            numbers[image.label_name] += 1
            stem = f"{image.label_name}_{numbers[image.label_name]:06d}"
            for form in formats:
                content = (self.folder / source).read_bytes() if form == PNG else FORMATS[form].encode(image)
                (target / FORMATS[form].name(stem)).write_bytes(content)
                copied = self.manifest["files"][source]
                files[FORMATS[form].name(stem)] = copied if form == PNG else hashlib.sha256(content).hexdigest()
            rows.append((FORMATS[PNG].name(stem), image.label, image.label_name))
            if len(shown := sheet.setdefault(image.label_name, [])) < SHEET_IMAGES:
                shown.append(torch.from_numpy(image.pixels))
        seal_cohort(target, rows, [*sheet.values()], [*sheet], self.released, self.datasheet, files)
