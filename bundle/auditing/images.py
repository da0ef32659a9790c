# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The two sides of an audit: a folder of synthetic images, whoever made it, and the real images it is held against."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bundle.cohort.ledger import CohortError
from bundle.cohort.writer import CURE, MANIFEST, verify_cohort
from bundle.data import DatasetDir, ImageData, Modality, image_transform
from bundle.data.class_folders import has_class_folders, read_class_folders
from bundle.data.dataset import IDENTITY_SPLITS
from bundle.data.errors import DataError, Problem
from bundle.data.layouts import read_folder
from bundle.data.listing import FolderListing, list_folder
from bundle.data.readers import SUPPORTED_FORMATS, ReadError, decode, pixel_sha256
from bundle.data.records import Record
from bundle.data.tables import Table, read_tables
from bundle.figures import from_uint8, to_uint8

__all__ = [
    "LEAST_SIDE",
    "PREPROCESSING",
    "Cohort",
    "RealData",
    "RealImages",
    "choose_preprocessing",
    "open_cohort",
    "read_pixels",
]

logger = logging.getLogger(__name__)

#: Images smaller than this show nobody.
LEAST_SIDE = 32

#: What was done to a cohort's images. "applied": they look as the networks see real images, cropped and matched, as
#: cohorts of this bundle do; "none": they look like the files in dataset_dir, which then are treated the same way.
PREPROCESSING = ("auto", "applied", "none")

#: Splits of each role: what was learned from, what thresholds are calibrated on, what nobody has seen.
ROLES = {"train": IDENTITY_SPLITS, "val": ("val",), "test": ("test",)}

#: The picture of many images that a cohort of this bundle brings.
CONTACT_SHEET = "contact_sheet.png"

# Images of each side that are compared to settle the preprocessing.
SAMPLE = 200
# Each thread holds a decoded radiograph, some hundred megabytes at full size.
THREADS = 8


@dataclass(frozen=True)
class Cohort:
    """Synthetic images before they are brought to the audit's size.

    Attributes:
        records: one for each image, in the order of their names; the label is None where none is known.
        side: longer side in pixels, the median over the images.
        sides: number of different sizes.
        digests: SHA-256 of each image's decoded pixels.
        manifest: of a cohort that this bundle wrote and that is as it says; else empty.
        holds: whether the manifest says what is there; None where there is none.
        not_judged: names of the files that are no single image: tables, texts, the contact sheet.
    """

    records: tuple[Record, ...]
    side: int
    sides: int
    digests: tuple[str, ...]
    manifest: dict[str, Any]
    holds: bool | None = None
    not_judged: tuple[str, ...] = ()

    @property
    def labels(self) -> Tensor | None:
        """Labels [N], or None unless every image has one."""
        labels = [record.label for record in self.records]
        return None if None in labels else torch.tensor(labels, dtype=torch.int64)

    @property
    def sha256(self) -> str:
        """Hash of what the images show and of their labels, whatever their names."""
        content = sorted([digest, record.label] for digest, record in zip(self.digests, self.records, strict=True))
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True)
class RealImages:
    """Real images of one role.

    Attributes:
        pixels: uint8 [N, H, W] or [N, H, W, 3], as the networks see them.
        labels: [N].
        patients: [N], a number for each patient of this role.
        records: for the private figures.
    """

    pixels: Tensor
    labels: Tensor
    patients: Tensor
    records: tuple[Record, ...]

    @classmethod
    def load(cls, data: ImageData, splits: str | Sequence[str]) -> RealImages:
        """Loads one or more splits of a data set.

        Raises:
            DataError: there is no image in them.
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

    def part(self, index: Tensor) -> RealImages:
        """Returns some of the images, patients numbered anew."""
        patients = self.patients[index].unique(return_inverse=True)[1]
        records = tuple(self.records[number] for number in index.tolist())
        return RealImages(self.pixels[index], self.labels[index], patients, records)


class RealData:
    """Real images of every role, and how results and caches name them.

    Args:
        data: at the resolution of whatever is held against them.

    Attributes:
        sides: ``train``, ``val`` and ``test``; train with the extra images, which the networks saw as well.
        own: indices of train's images that are not extra: those whose classes are in the shares of the test images.

    Raises:
        DataError: a split is empty.
    """

    def __init__(self, data: ImageData) -> None:
        self.data = data
        self.sides = {role: RealImages.load(data, splits) for role, splits in ROLES.items()}
        own = {record.name for record in data.records("train")}
        self.own = torch.tensor([n for n, record in enumerate(self.sides["train"].records) if record.name in own])

    def key(self) -> dict[str, Any]:
        """Returns plain values that change with whatever distances to the images depend on."""
        return {
            "real": {role: self.data.digests(splits) for role, splits in ROLES.items()},
            "patients": {role: side.patients.tolist() for role, side in self.sides.items()},
            "labels": {role: side.labels.tolist() for role, side in self.sides.items()},
            "preprocessing": self.data.modality.preprocessing,
            "resolution": self.data.resolution,
        }

    def content(self) -> dict[str, Any]:
        """Returns what results.json says of the images."""
        return {
            "real": {
                role: {"images": len(side.pixels), "patients": int(side.patients.max()) + 1}
                for role, side in self.sides.items()
            },
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
    """Opens every image of a folder once and lists everything that is wrong at once.

    Every file below the folder is judged or, if it is a text or the contact sheet of a cohort of this bundle, named in
    `Cohort.not_judged`; a folder that holds anything else is refused.

    Args:
        cohort_dir: images anywhere below it; labels come from a labels.csv, which must list every image, or from
            folders named after the classes.
        dataset_dir: the real images, which the cohort must not be; the classes are those that they name.
        modality: preset.
        layout: of dataset_dir.

    Raises:
        DataError: the folder is empty, is that of the real images, or holds files that cannot be judged.
    """
    listing = _list_cohort(cohort_dir, dataset_dir)
    manifest, holds = _manifest(listing.folder)
    not_judged, unjudged = _other_files(listing, bool(holds))
    names = read_folder(dataset_dir, layout, modality).class_names
    records, missed = _records(listing, modality.with_classes(names), bool(holds))
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        inspected = pool.map(lambda record: _inspect(record, modality.channels), records)
        found = list(tqdm(inspected, "checking the cohort", len(records), unit="image"))
    problems = [*listing.problems, *unjudged, *missed, *(entry for entry in found if isinstance(entry, Problem))]
    if problems:
        raise DataError(problems, f"of {len(records)} images of the cohort")
    good = [entry for entry in found if not isinstance(entry, Problem)]
    sides = [max(size) for size, _ in good]
    return Cohort(
        tuple(records),
        int(np.median(sides)),
        len({size for size, _ in good}),
        tuple(digest for _, digest in good),
        manifest,
        holds,
        tuple(not_judged),
    )


def _list_cohort(cohort_dir: str | os.PathLike[str], dataset_dir: DatasetDir) -> FolderListing:
    """Lists a folder of synthetic images; refuses one that cannot be such a folder."""
    folder = Path(cohort_dir).expanduser().resolve()
    several = [dataset_dir] if isinstance(dataset_dir, str | Path) else dataset_dir
    real = [Path(one).expanduser().resolve() for one in several]
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
    """Reads images as the networks see them, rounded to the 8 bits of a released file on either side of the audit.

    Args:
        paths: files.
        modality: its channels and preprocessing hold.
        resolution: side in pixels.
        what: for the progress bar.

    Returns:
        uint8 [N, resolution, resolution], with a last axis of 3 for colour.
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


def choose_preprocessing(
    cohort: Cohort,
    data: ImageData,
    chosen: str,
    distance: Callable[[Tensor, Tensor], float],
) -> tuple[Modality, str]:
    """Settles how a cohort's images are brought to what the networks see.

    Args:
        cohort: its manifest may say.
        data: the real images, at the resolution of the audit.
        chosen: one of `PREPROCESSING`; "auto" believes the manifest, and else looks whether the images, as they are,
            are more like training images as the networks see them or as they lie in their files.
        distance: between two sets of images [N, C, H, W] in [-1, 1].

    Returns:
        The preset for the cohort's images, and how it was settled, in words.
    """
    modality = data.modality
    plain = replace(modality, preprocessing="plain")
    if modality.preprocessing == "plain":
        return modality, "since this modality has none"
    if chosen != "auto":
        return (plain if chosen == "applied" else modality), "as the option cohort_preprocessing says"
    if cohort.manifest.get("preprocessing") == modality.preprocessing:
        return plain, "as the cohort's manifest says"

    def read(records: Sequence[Record], preset: Modality) -> Tensor:
        paths = [record.image for record in records[:: max(1, len(records) // SAMPLE)]][:SAMPLE]
        return from_uint8(read_pixels(paths, preset, data.resolution, "a sample"))

    images, train = read(cohort.records, plain), data.records("train")
    as_seen, as_filed = (distance(images, read(train, preset)) for preset in (modality, plain))
    best = plain if as_seen <= as_filed else modality
    return best, "by whether its images look more like preprocessed training images or like their files"


def _other_files(listing: FolderListing, has_sheet: bool) -> tuple[list[str], list[Problem]]:
    """Returns the names of what need not be judged, and what is wrong with other files that are no images."""
    texts = [listing.name(path) for path in listing.images if has_sheet and _is_contact_sheet(listing, path)]
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


def _is_contact_sheet(listing: FolderListing, path: Path) -> bool:
    return path == listing.folder / CONTACT_SHEET


def _records(listing: FolderListing, modality: Modality, has_sheet: bool) -> tuple[list[Record], list[Problem]]:
    """Returns the images of a cohort with their labels, and what is wrong with its labels.csv."""
    images = [path for path in listing.images if not (has_sheet and _is_contact_sheet(listing, path))]
    if (listing.folder / "labels.csv").is_file():
        records, problems, _, _ = read_tables(listing, [Table()], modality)
        records.sort(key=lambda record: record.name)
        listed = {record.image for record in records}
        message, cure = "lies in the cohort, but labels.csv does not list it", "Add a line for it, or remove the image"
        missed = [Problem(listing.name(path), "not listed", message, cure) for path in images if path not in listed]
        if any(_is_contact_sheet(listing, path) for path in images) and os.path.lexists(listing.folder / MANIFEST):
            message = "shows many images, and the manifest, which would vouch for it, does not hold"
            missed = [entry for entry in missed if entry.name != CONTACT_SHEET]
            missed.append(Problem(CONTACT_SHEET, "not judged", message, "Remove it from the cohort"))
        return records, [*problems, *missed]
    if has_class_folders(listing):
        try:
            records, _, reasons, _ = read_class_folders(listing, modality)
        except DataError:
            records, reasons = [], []  # the folders mean something else: the images have no labels
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


def _manifest(folder: Path) -> tuple[dict[str, Any], bool | None]:
    """Returns the manifest of a cohort, if it holds, and whether it does."""
    if not os.path.lexists(folder / MANIFEST):
        return {}, None
    try:
        return verify_cohort(folder), True
    except CohortError as error:
        logger.warning("The manifest is not relied on. %s", str(error).replace(CURE, "").strip())
        return {}, False
