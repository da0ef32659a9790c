# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Loads both sides of an audit: a folder of synthetic images of any origin, and the real images for comparison."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bundle.auditing.other_formats import copy_problem, other_formats
from bundle.cohort.contents import read_filtered
from bundle.cohort.ledger import CohortError
from bundle.cohort.writer import CURE, MANIFEST, images_sha256, verify_cohort
from bundle.data import DatasetDir, ImageData, Modality, image_transform
from bundle.data.class_folders import has_class_folders, read_class_folders
from bundle.data.dataset import IDENTITY_SPLITS
from bundle.data.errors import DataError, Problem
from bundle.data.layouts import read_folder
from bundle.data.listing import FolderListing, list_folder
from bundle.data.readers import SUPPORTED_FORMATS, ReadError, decode, pixel_sha256
from bundle.data.records import Record
from bundle.data.tables import Table, read_tables
from bundle.figures import to_uint8

__all__ = [
    "LEAST_SIDE",
    "Cohort",
    "RealData",
    "RealImages",
    "open_cohort",
    "read_pixels",
]

logger = logging.getLogger(__name__)

#: Smallest longer side of an image, in pixels; smaller images do not show a recognisable person.
LEAST_SIDE = 32

#: Splits of each role: training images, images that calibrate thresholds, images that no network was trained on.
ROLES = {"train": IDENTITY_SPLITS, "val": ("val",), "test": ("test",)}

#: The overview of images in a cohort of this bundle.
CONTACT_SHEET = "contact_sheet.png"

# Limits the memory: each thread holds a decoded radiograph, some hundred megabytes at full size.
THREADS = 8


@dataclass(frozen=True)
class Cohort:
    """The files of synthetic images, before these are resized for the audit.

    Attributes:
        folder: absolute path of the folder.
        records: one record per image, in the order of the names; the label is None if it is unknown.
        side: median of the images' longer sides, in pixels.
        sides: number of different image sizes.
        digests: SHA-256 of the decoded pixels of each image.
        manifest: content of the cohort's manifest if it matches the files; otherwise empty.
        holds: whether the manifest matches the files; None if there is none.
        not_judged: names of the files that are not audited: tables, texts and the contact sheet.
        filtered: removals of images by earlier audits, see `bundle.cohort.contents.read_filtered`.
        releases: folder, number of images, SHA-256 and `images_sha256` of each release, if several are audited as one.
    """

    folder: Path
    records: tuple[Record, ...]
    side: int
    sides: int
    digests: tuple[str, ...]
    manifest: dict[str, Any]
    holds: bool | None = None
    not_judged: tuple[str, ...] = ()
    filtered: tuple[dict[str, Any], ...] = ()
    releases: tuple[tuple[Path, int, str, str | None], ...] = ()

    @property
    def labels(self) -> Tensor | None:
        """Labels [N]; None unless every image has one."""
        labels = [record.label for record in self.records]
        return None if None in labels else torch.tensor(labels, dtype=torch.int64)

    @property
    def sha256(self) -> str:
        """Hash of the images' pixels and labels, which does not depend on the names of the files."""
        pairs = zip(self.digests, self.records, strict=True)
        content = sorted(([digest, record.label] for digest, record in pairs), key=str)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def images_sha256(self) -> str | None:
        """Hash by which a cohort is recognised as the audited one, from its manifest; None unless that is valid."""
        return images_sha256(self.manifest) if self.holds and not self.releases else None


@dataclass(frozen=True)
class RealImages:
    """Real images of one role.

    Attributes:
        pixels: preprocessed images, uint8 [N, H, W] or [N, H, W, 3].
        labels: labels [N]; -1 if unknown.
        patients: patient number [N] of each image; each role counts its patients from 0.
        records: records of the images, for the private results.
    """

    pixels: Tensor
    labels: Tensor
    patients: Tensor
    records: tuple[Record, ...]

    @classmethod
    def load(cls, data: ImageData, splits: str | Sequence[str]) -> RealImages:
        """Loads one or more splits of a data set.

        Raises:
            DataError: there is no image in these splits.
        """
        records = tuple(data.records(splits))
        if not records:
            raise DataError(
                f"the dataset has no {splits if isinstance(splits, str) else splits[0]} images. The audit holds a "
                "cohort against train images, calibrates on val and compares with test: give dataset_dir all three, "
                "by a column split in labels.csv or by folders of these names."
            )
        numbers: dict[str, int] = {}
        patients = [numbers.setdefault(record.patient_id, len(numbers)) for record in records]
        pixels = read_pixels([record.image for record in records], data.modality, data.resolution, "real images")
        labels = torch.tensor([-1 if record.label is None else record.label for record in records])
        return cls(pixels, labels, torch.tensor(patients), records)

    def content(self) -> dict[str, int]:
        """Returns the numbers of images and patients for results.json."""
        return {"images": len(self.pixels), "patients": int(self.patients.max()) + 1}

    def part(self, index: Tensor) -> RealImages:
        """Returns a subset of the images, with the patients renumbered from 0."""
        patients = self.patients[index].unique(return_inverse=True)[1]
        records = tuple(self.records[number] for number in index.tolist())
        return RealImages(self.pixels[index], self.labels[index], patients, records)


class RealData:
    """Real images of every role, with their description for results and caches.

    Args:
        data: data set, at the resolution of the images that are compared with it.

    Attributes:
        sides: images by role (``train``, ``val``, ``test``); train includes the extra images, since the networks were
            trained on them as well.
        own: indices of the training images that are not extra; their class proportions are those of the test images.

    Raises:
        DataError: a split is empty.
    """

    def __init__(self, data: ImageData) -> None:
        self.data = data
        self.sides = {role: RealImages.load(data, splits) for role, splits in ROLES.items()}
        own = {record.name for record in data.records("train")}
        self.own = torch.tensor([n for n, record in enumerate(self.sides["train"].records) if record.name in own])

    def key(self) -> dict[str, Any]:
        """Returns plain values that identify everything about the images that distances depend on."""
        return {
            "real": {role: self.data.digests(splits) for role, splits in ROLES.items()},
            "patients": {role: side.patients.tolist() for role, side in self.sides.items()},
            "labels": {role: side.labels.tolist() for role, side in self.sides.items()},
            "preprocessing": self.data.modality.preprocessing,
            "resolution": self.data.resolution,
        }

    def content(self) -> dict[str, Any]:
        """Returns the description of the images for results.json."""
        return {
            "real": {role: side.content() for role, side in self.sides.items()},
            "extra_images": len(self.sides["train"].pixels) - len(self.own),
            "split_sha256": self.data.split_sha256,
            "modality": self.data.modality.name,
            "resolution": self.data.resolution,
        }


def open_cohort(
    cohort_dir: str | os.PathLike[str],
    dataset_dir: DatasetDir,
    modality: Modality,
    layout: str | Mapping[str, Any] = "auto",
) -> Cohort:
    """Reads every image of a folder once and reports all problems together.

    Text files and the contact sheet of a cohort of this bundle are not audited but listed in `Cohort.not_judged`. Its
    files in further formats must show the pixels of its images, and are not judged again. Any other file that is not an
    image is an error.

    Args:
        cohort_dir: folder with the synthetic images, also in subfolders. Labels are read from a labels.csv, which must
            list every image, or from folders named after the classes.
        dataset_dir: folder or folders of the real images, which also define the classes.
        modality: preset of the modality.
        layout: layout of dataset_dir.

    Raises:
        DataError: the folder is empty, is or lies in that of the real images, or contains files that cannot be audited.
    """
    listing = _list_cohort(cohort_dir, dataset_dir)
    manifest, holds = _manifest(listing.folder)
    not_judged, unjudged = _other_files(listing, bool(holds))
    names = read_folder(dataset_dir, layout, modality).class_names
    copies = other_formats(listing, manifest)
    sheet = {listing.folder / CONTACT_SHEET} if holds else set()
    records, missed = _records(listing, modality.with_classes(names), sheet | copies.keys())
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        inspected = pool.map(lambda record: _inspect(record, modality.channels), records)
        found = list(tqdm(inspected, "checking the cohort", len(records), unit="image"))
    problems = [*listing.problems, *unjudged, *missed, *(entry for entry in found if isinstance(entry, Problem))]
    problems += _copy_problems(listing, copies, records, found, modality.channels)
    if problems:
        raise DataError(problems, f"of {len(records)} images of the cohort")
    good = [entry for entry in found if not isinstance(entry, Problem)]
    sides = [max(size) for size, _ in good]
    return Cohort(
        listing.folder,
        tuple(records),
        int(np.median(sides)),
        len({size for size, _ in good}),
        tuple(digest for _, digest in good),
        manifest,
        holds,
        tuple(not_judged),
        read_filtered(listing.folder, manifest),
    )


def _list_cohort(cohort_dir: str | os.PathLike[str], dataset_dir: DatasetDir) -> FolderListing:
    """Lists a folder of synthetic images, or raises `DataError` if it is none."""
    folder, several = Path(cohort_dir).expanduser().resolve(), dataset_dir
    real = [Path(one).expanduser().resolve() for one in ([several] if isinstance(several, str | Path) else several)]
    if not folder.is_dir():
        raise DataError(f"cohort_dir {cohort_dir} is no folder; give the folder that holds the synthetic images.")
    if any(place in real for place in (folder, *folder.parents)):
        raise DataError(
            f"cohort_dir {cohort_dir} is the folder of the real images, or lies in it. Name the folder of the "
            "synthetic images as cohort_dir and that of the real ones as dataset_dir."
        )
    if (folder / "cohort" / "manifest.json").is_file():
        raise DataError(
            f"cohort_dir {cohort_dir} holds a cohort and, beside it, what is private. Name {cohort_dir}/cohort."
        )
    listing = list_folder(folder)
    if not listing.images and not listing.problems:
        raise DataError(
            f"cohort_dir {cohort_dir} holds no image ({SUPPORTED_FORMATS}). Give the folder of synthetic images."
        )
    return listing


def read_pixels(paths: Sequence[Path], modality: Modality, resolution: int, what: str) -> Tensor:
    """Reads and preprocesses images and rounds them to 8 bits, as in released files, on both sides of the audit.

    Args:
        paths: files of the images.
        modality: preset that defines channels and preprocessing.
        resolution: side of the result, in pixels.
        what: name of the images for the progress bar.

    Returns:
        Pixels, uint8 [N, resolution, resolution], or [N, resolution, resolution, 3] for colour images.
    """
    transform = image_transform(modality, resolution)
    shape = (len(paths), resolution, resolution, 3) if modality.channels == 3 else (len(paths), resolution, resolution)
    pixels = torch.empty(shape, dtype=torch.uint8)

    def read(number: int) -> None:
        image: Tensor = transform({"image": str(paths[number])})["image"]
        pixels[number] = torch.from_numpy(to_uint8(image[None]))[0]

    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        for _ in tqdm(pool.map(read, range(len(paths))), f"loading {what}", len(paths), unit="image"):
            pass
    return pixels


def _other_files(listing: FolderListing, has_sheet: bool) -> tuple[list[str], list[Problem]]:
    """Returns the names of the files that need no audit, and the problems of other files that are not images."""
    texts = [listing.name(path) for path in listing.images if has_sheet and path == listing.folder / CONTACT_SHEET]
    problems = []
    for path in listing.clutter:
        cure = "Remove it from the cohort"
        problems.append(Problem(listing.name(path), "not judged", "may hold pictures, and is not judged", cure))
    for path, reason in listing.others:
        name = listing.name(path)
        if path.is_file() and _is_text(path):
            texts.append(name)
        else:
            cure = "Remove it from the cohort, or save what it shows as PNG"
            problems.append(Problem(name, "not judged", f"cannot be judged (one of the {reason})", cure))
    return sorted(texts), problems


def _is_text(path: Path) -> bool:
    try:
        with open(path, encoding="utf-8") as stream:
            return all("\0" not in part for part in iter(lambda: stream.read(2**20), ""))
    except (OSError, UnicodeDecodeError):
        return False


def _records(listing: FolderListing, modality: Modality, skipped: Set[Path]) -> tuple[list[Record], list[Problem]]:
    """Returns the images of a cohort with their labels, except the skipped ones, and the problems of its labels.csv."""
    images = [path for path in listing.images if path not in skipped]
    if (listing.folder / "labels.csv").is_file():
        records, problems, _, _ = read_tables(listing, [Table()], modality)
        records.sort(key=lambda record: record.name)
        listed = {record.image for record in records}
        message, cure = "lies in the cohort, but labels.csv does not list it", "Add a line for it, or remove the image"
        missed = [Problem(listing.name(path), "not listed", message, cure) for path in images if path not in listed]
        if any(path == listing.folder / CONTACT_SHEET for path in images) and os.path.lexists(
            listing.folder / MANIFEST
        ):
            message = "shows many images, and the manifest, which would vouch for it, does not hold"
            missed = [entry for entry in missed if entry.name != CONTACT_SHEET]
            missed.append(Problem(CONTACT_SHEET, "not judged", message, "Remove it from the cohort"))
        return records, [*problems, *missed]
    if has_class_folders(listing):
        try:
            records, _, reasons, _ = read_class_folders(listing, modality)
        except DataError:
            records, reasons = [], []  # the folders are not named after classes: the images have no labels
        if records and not reasons:
            return records, []
    names = map(listing.name, images)
    return [Record(path, name, None, name) for path, name in zip(images, names, strict=True)], []


def _inspect(record: Record, channels: int) -> tuple[tuple[int, int], str] | Problem:
    try:
        image = decode(record.image, channels, strict=True)
    except ReadError as error:
        return Problem(record.name, error.kind, error.message, error.cure)
    height, width = image.shape[-2:]
    if max(height, width) < LEAST_SIDE:
        cure = f"Give images of at least {LEAST_SIDE} pixels"
        return Problem(record.name, "too small", f"{width} x {height} pixels show nobody", cure)
    return (height, width), pixel_sha256(image)


def _copy_problems(
    listing: FolderListing,
    copies: Mapping[Path, Path],
    records: Sequence[Record],
    found: Sequence[tuple[tuple[int, int], str] | Problem],
    channels: int,
) -> list[Problem]:
    """Returns the problems of files that must show the pixels of images; those of the images are known already."""
    digests = {r.image: entry[1] for r, entry in zip(records, found, strict=True) if not isinstance(entry, Problem)}

    def compare(pair: tuple[Path, Path]) -> Problem | None:
        path, image = pair
        return copy_problem(listing.name(path), path, image, digests[image], channels)

    compared = [pair for pair in copies.items() if pair[1] in digests]
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        return [problem for problem in pool.map(compare, compared) if problem is not None]


def _manifest(folder: Path) -> tuple[dict[str, Any], bool | None]:
    """Returns the manifest of a cohort, empty unless it matches the files, and whether it does."""
    if not os.path.lexists(folder / MANIFEST):
        return {}, None
    try:
        return verify_cohort(folder), True
    except CohortError as error:
        logger.warning("The manifest is not relied on. %s", str(error).replace(CURE, "").strip())
        return {}, False
