# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Checks a data set and every image in it before networks are trained on it."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bundle.data.errors import DataError, Problem
from bundle.data.layouts import DatasetDir, Folder, read_folder
from bundle.data.listing import LeftOut, summarise_left_out
from bundle.data.modality import Modality, get_modality
from bundle.data.patients import propose_pattern
from bundle.data.readers import ReadError, decode, pixel_sha256
from bundle.data.records import Record
from bundle.data.splits import Inventory, Reading, propose_splits
from bundle.data.transforms import get_preprocessing
from bundle.files import private_folder, write_json

__all__ = ["MIN_IMAGES_PER_CLASS", "CheckReport", "check_dataset", "private_dir"]

#: Smallest number of images per class, for which splits of 70, 10 and 20 % have at least one image of each class.
MIN_IMAGES_PER_CLASS = 10

_CACHE_FORMAT = 4

OnImage = Callable[[str, NDArray[np.float32]], None]

#: Largest number of threads; each holds a decoded image, which takes some hundred megabytes at full size.
_MAX_THREADS = 8


@dataclass(frozen=True)
class CheckReport:
    """Result of checking a data set.

    Attributes:
        folder: records, layout and class names, as read from the folder.
        inventory: records of the images that are used, and the SHA-256 of the pixels of those that can be read.
        split_of: split of each image, by image name; None where it is undefined.
        seed: random seed with which splits were drawn; None where the data set defines them all.
        problems: all problems, sorted by image; empty for a usable data set.
        notes: remarks that do not prevent the use of the data set.
    """

    folder: Folder
    inventory: Inventory
    split_of: Mapping[str, str | None]
    seed: int | None
    problems: list[Problem]
    notes: list[str]


@dataclass(frozen=True)
class _Inspection:
    """Result of opening one image, and the state of the file by which changes are noticed.

    The state includes ctime and inode, since files unpacked from one archive may share size and modification time and
    could be swapped.
    """

    state: tuple[int, ...]
    digest: str | None = None
    kind: str = ""
    message: str = ""
    cure: str = ""


def private_dir(output_dir: str | Path) -> Path:
    """Returns the folder for all files that show or name real images, which must not be shared."""
    return Path(output_dir) / "private"


def _inspect(record: Record, modality: Modality, on_image: OnImage | None) -> _Inspection:
    state = _state(record.image)
    try:
        image = decode(record.image, modality.channels, strict=True)
        get_preprocessing(modality).check(image)
        _refuse_mask(image)
    except ReadError as error:
        return _Inspection(state, kind=error.kind, message=error.message, cure=error.cure)
    if on_image is not None:
        on_image(record.name, image)
    return _Inspection(state, digest=pixel_sha256(image))


def _state(path: Path) -> tuple[int, ...]:
    if not path.is_file():
        return ()
    status = path.stat()
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def _refuse_mask(image: NDArray[np.float32]) -> None:
    """Raises ReadError where an image has at most two values, as masks and drawings have."""
    values = np.unique(image.reshape(-1)[:: max(1, image.size // 4096)])
    if len(values) <= 2 and np.isin(image, values).all():
        cure = "Move it out of the folder of the images, or list the images in labels.csv"
        raise ReadError("mask", "has two grey levels only, as masks have", cure)


def _read_cache(cache_file: Path, modality: Modality) -> dict[str, _Inspection]:
    try:
        content = json.loads(cache_file.read_text(encoding="utf-8"))
        seen_as = content["format"], content["channels"], content["preprocessing"]
        if seen_as != (_CACHE_FORMAT, modality.channels, modality.preprocessing):
            return {}
        images = content["images"].items()
        return {path: _Inspection(**{**entry, "state": tuple(entry["state"])}) for path, entry in images}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _inspect_all(
    records: Sequence[Record],
    modality: Modality,
    cache_file: Path | None,
    progress: bool,
    on_image: OnImage | None,
) -> dict[str, _Inspection]:
    """Opens images that are new, have changed or had problems in the last check; returns all results by image name."""
    cache = _read_cache(cache_file, modality) if cache_file else {}
    known: dict[str, _Inspection] = {}
    for record in records:
        entry = cache.get(str(record.image))
        if entry is not None and entry.digest is not None and entry.state == _state(record.image):
            known[record.name] = entry
    todo = [record for record in records if record.name not in known]
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda record: _inspect(record, modality, on_image), todo)
        bar = tqdm(found, "checking images", len(todo), unit="image", disable=not (progress and todo))
        known |= {record.name: entry for record, entry in zip(todo, bar, strict=True)}
    if cache_file and todo:
        images = {str(record.image): asdict(known[record.name]) for record in records}
        seen_as = {"channels": modality.channels, "preprocessing": modality.preprocessing}
        write_json(cache_file, {"format": _CACHE_FORMAT, **seen_as, "images": images})
    return known


def _groups(records: Sequence[Record], digests: Mapping[str, str]) -> list[list[Record]]:
    """Returns the groups of at least two images with the same pixels; images that cannot be read are in none."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.name in digests:
            groups[digests[record.name]].append(record)
    return [group for group in groups.values() if len(group) > 1]


def _drop_duplicates(records: Sequence[Record], digests: Mapping[str, str]) -> tuple[list[Record], list[LeftOut]]:
    """Keeps one of the images with the same pixels and class, a train image if there is one; returns both parts."""
    order = {"train": 0, "extra": 1, "val": 2, "test": 3, None: 4}
    dropped: dict[str, LeftOut] = {}
    for group in _groups(records, digests):
        if len({record.label for record in group}) == 1:
            _, *others = sorted(group, key=lambda record: (order[record.split], record.name))
            reason = "copies of another image, which is kept"
            dropped |= {other.name: LeftOut(other.name, reason) for other in others}
    return [record for record in records if record.name not in dropped], list(dropped.values())


def _duplicates(
    records: Sequence[Record], digests: Mapping[str, str], split_of: Mapping[str, str | None]
) -> tuple[list[Problem], list[str]]:
    problems = []
    harmless = 0
    for first, *others in _groups(records, digests):
        for other in others:
            if first.label != other.label and None not in (first.label, other.label):
                problems.append(
                    Problem(
                        other.name,
                        "duplicate with another label",
                        f"same pixels as {first.name}, but label {other.label} instead of {first.label}",
                        "Remove both, or the one with the wrong label",
                    )
                )
            elif split_of[first.name] != split_of[other.name]:
                problems.append(
                    Problem(
                        other.name,
                        "duplicate across splits",
                        f"same pixels as {first.name}; they are in {split_of[other.name]} and {split_of[first.name]}",
                        "Remove one, give both the same patient_id and split, or add --drop_duplicates, which uses one "
                        "of them, that in train if there is one",
                    )
                )
            else:
                harmless += 1
    notes = [f"{harmless} images repeat the pixels of another one of their split and class."] if harmless else []
    return problems, notes


def _patient_notes(records: Sequence[Record]) -> list[str]:
    unknown = [record for record in records if not record.has_patient]
    if not unknown:
        return []
    number = f"{len(unknown)} of {len(records)}" if len(unknown) < len(records) else f"All {len(records)}"
    notes = [
        f"{number} images name no patient and count as a patient each; if that is not so, give a column patient_id "
        "or --patient_pattern, or images of one patient may part between train and test."
    ]
    if found := propose_pattern(unknown):
        pattern, images, patients = found
        notes.append(
            f"The names look as if they told patients: --patient_pattern '{pattern}' finds {patients} patients in "
            f"{images} of these images."
        )
    return notes


def _class_counts(inventory: Inventory, split_of: Mapping[str, str | None]) -> list[Problem]:
    problems = []
    counts = Counter((record.label, split_of[record.name]) for record in inventory.records)
    for label, name in enumerate(inventory.class_names):
        splits = {split: counts[label, split] for split in ("train", "val", "test")}
        total = sum(splits.values())
        empty = [split for split, n in splits.items() if n == 0]
        if total < MIN_IMAGES_PER_CLASS:
            message, cure = (
                f"class {label} ({name}) has {total} images",
                f"Add images: {MIN_IMAGES_PER_CLASS} is the least",
            )
        elif empty:
            patients = len({record.patient_id for record in inventory.records if record.label == label})
            message = f"class {label} ({name}): {total} images of {patients} patients, none in {' and '.join(empty)}"
            cure = "Move some patients there (split column or split folder), or add patients"
            if patients == 1:
                cure += "; if anonymising gave all images one patient id, list the true groups in labels.csv"
        else:
            continue
        problems.append(Problem(f"class {name}", "too few images", message, cure))
    return problems


def check_dataset(
    dataset_dir: DatasetDir,
    output_dir: str | Path | None = None,
    modality: str | Modality = "xray",
    layout: str | Mapping[str, Any] = "auto",
    seed: int = 0,
    progress: bool = True,
    patient_pattern: str | None = None,
    drop_duplicates: bool | None = None,
    on_image: OnImage | None = None,
) -> CheckReport:
    """Opens every image of a data set and reports all problems at once.

    Args:
        dataset_dir: path of the folder of images, or of several.
        output_dir: output folder. If its subfolder ``private`` holds a split file, this is used; the results are stored
            there, so that a second check opens only files that have changed or had problems. None stores nothing.
        modality: preset of the kind of image, or its name.
        layout: see :func:`bundle.data.layouts.read_folder`.
        seed: random seed of the splits, used where the data set defines none.
        progress: whether to show a progress bar.
        patient_pattern: see :func:`bundle.data.layouts.read_folder`; None for the value in the split file, if any.
        drop_duplicates: whether only one of several images with the same pixels and label is used, one in train if
            there is one; None for the value in the split file, if any.
        on_image: called with the name and the pixels of each image that is opened and can be used, float32 [C, H, W] in
            [0, 1], from several threads; images that the last check opened are not opened again.

    Raises:
        DataError: the folder cannot be read as a data set at all, or the output folder is inside of it.
    """
    preset = get_modality(modality)
    private = None
    if output_dir is not None:
        _refuse_output_in_data(dataset_dir, output_dir)
        private = private_folder(private_dir(output_dir))
    split_file = private / "splits.json" if private else None
    reading = Reading.settle(split_file, patient_pattern, drop_duplicates)
    folder = read_folder(dataset_dir, layout, preset, reading.patient_pattern)
    inspections = _inspect_all(
        folder.records, preset, private / "checked.json" if private else None, progress, on_image
    )
    problems = list(folder.problems)
    problems += [
        Problem(name, entry.kind, entry.message, entry.cure) for name, entry in inspections.items() if not entry.digest
    ]
    digests = {name: entry.digest for name, entry in inspections.items() if entry.digest}
    records, left_out = folder.records, list(folder.left_out)
    if reading.drop_duplicates:
        records, dropped = _drop_duplicates(records, digests)
        left_out += dropped
    inventory = Inventory(records, digests, folder.class_names, reading)
    split_of, drawn_with, unsettled = _settle_splits(inventory, split_file, seed)
    found, notes = _duplicates(records, digests, split_of)
    problems += [*unsettled, *found]
    # Without splits, every class would seem to be missing.
    if all(split_of.values()):
        problems += _class_counts(inventory, split_of)
    notes = [*folder.notes, *_patient_notes(records), *notes, *summarise_left_out(left_out)]
    return CheckReport(folder, inventory, split_of, drawn_with, sorted(problems), notes)


def _settle_splits(
    inventory: Inventory, split_file: Path | None, seed: int
) -> tuple[dict[str, str | None], int | None, Sequence[Problem]]:
    """Returns the split of each image (None if undefined), the seed of drawn splits, and problems."""
    split_of: dict[str, str | None] = {record.name: record.split for record in inventory.records}
    try:
        proposed, drawn_with = propose_splits(inventory, split_file, seed)
    except DataError as error:
        if not error.problems:
            raise
        return split_of, None, error.problems
    return split_of | proposed, drawn_with, []


def _refuse_output_in_data(dataset_dir: DatasetDir, output_dir: str | Path) -> None:
    output = Path(output_dir).expanduser().resolve()
    folders = [dataset_dir] if isinstance(dataset_dir, str | Path) else dataset_dir
    for folder in folders:
        home = Path(folder).expanduser().resolve()
        if str(folder) and home in (output, *output.parents):
            raise DataError(
                f"output_dir {output_dir} lies in dataset_dir {folder}: what is written there would be read as images "
                "of the data set. Name a place outside of it"
            )
