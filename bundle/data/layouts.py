# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Readers that recognise a folder of images by what is in it.

A layout turns a folder into records without opening images. To teach the bundle another one, write the two functions of
:class:`Layout` and add it to :data:`LAYOUTS`.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from bundle.data.errors import DataError, Problem
from bundle.data.modality import Modality, get_modality
from bundle.data.readers import IMAGE_SUFFIXES, dicom_patient_id, image_suffix, is_dicom
from bundle.data.records import SPLITS, Record

__all__ = ["LAYOUTS", "Folder", "Layout", "find_images", "read_folder", "read_records"]

_SPLIT_NAMES = {name: name for name in SPLITS} | {"training": "train", "valid": "val", "validation": "val"}
_SUPPORTED = "PNG, JPEG, DICOM and NIfTI"


@dataclass
class Folder:
    """A data set as its layout describes it, before any image is opened.

    Attributes:
        path: the folder.
        records: one per image, sorted by name.
        problems: what the layout's own files (a CSV, folder names) got wrong.
        layout: name of the layout.
        class_names: the name of each label as this data set uses them.
    """

    path: Path
    records: list[Record]
    problems: list[Problem]
    layout: str
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """One way to lay out a data set.

    Attributes:
        name: what the option ``layout`` calls it.
        description: what is in such a folder, for messages.
        recognise: whether a folder looks like this layout.
        read: turns the folder into a :class:`Folder`.
        explicit: the folder says itself what it is (a CSV), so this layout wins over those that go by names.
    """

    name: str
    description: str
    recognise: Callable[[Path], bool]
    read: Callable[[Path, Modality], Folder]
    explicit: bool = field(default=False)


def _is_image(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    return image_suffix(path) in IMAGE_SUFFIXES or (path.suffix == "" and path.is_file() and is_dicom(path))


def find_images(folder: Path) -> Iterator[Path]:
    """Yields the image files anywhere below a folder, sorted; hidden ones and other files are left out."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if not any(part.startswith(".") or part == "__MACOSX" for part in parts) and path.is_file() and _is_image(path):
            yield path


# --- labels.csv ---------------------------------------------------------------------------------------------------

_CSV_REQUIRED = ("image", "label")


def _recognise_csv(folder: Path) -> bool:
    return (folder / "labels.csv").is_file()


def _read_csv(folder: Path, modality: Modality) -> Folder:
    table = folder / "labels.csv"
    if not table.is_file():
        raise DataError(f"{folder}: no labels.csv in it; add one with the columns image,label or choose another layout")
    try:
        with open(table, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, restval="")
            rows = [{(key or "").strip(): value for key, value in row.items()} for row in reader]
            columns = [column.strip() for column in reader.fieldnames or []]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: not a readable CSV ({error}); save it as comma-separated UTF-8 text") from error
    missing = [column for column in _CSV_REQUIRED if column not in columns]
    if missing:
        raise DataError(
            f"{table}: no column {' and no column '.join(map(repr, missing))}; found {columns}. "
            "Rename the columns to image,label and, where known, label_name,patient_id,split"
        )
    if not rows:
        raise DataError(f"{table}: has a header but no rows; list one image per row")

    records: list[Record] = []
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, start=2):
        name = PurePosixPath((row["image"] or "").strip().replace("\\", "/")).as_posix()
        if name == ".":
            problems.append(
                Problem("labels.csv", "missing name", f"line {number} names no image", "Fill in or delete the line")
            )
            continue
        if name in seen:
            problems.append(
                Problem(
                    name,
                    "duplicate name",
                    f"listed in lines {seen[name]} and {number} of labels.csv",
                    "Keep one of the lines",
                )
            )
            continue
        seen[name] = number
        path = folder / name
        if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
            problems.append(
                Problem(
                    name,
                    "outside",
                    f"line {number} of labels.csv points outside the folder",
                    "Move the image into the folder and give its path relative to labels.csv",
                )
            )
            continue
        label, problem = _csv_label(name, row, number, modality)
        if problem:
            problems.append(problem)
        split: str | None = (row.get("split") or "").strip() or None
        if split is not None:
            if split.casefold() not in _SPLIT_NAMES:
                problems.append(
                    Problem(
                        name,
                        "unknown split",
                        f"split {split!r} in line {number} of labels.csv",
                        f"Use one of {', '.join(SPLITS)}",
                    )
                )
            split = _SPLIT_NAMES.get(split.casefold())
        patient = (row.get("patient_id") or "").strip() or name
        records.append(Record(path.absolute(), name, label, patient, split))
    return Folder(folder, sorted(records, key=lambda record: record.name), problems, "labels_csv", modality.class_names)


def _csv_label(name: str, row: dict[str, str], number: int, modality: Modality) -> tuple[int | None, Problem | None]:
    text = (row["label"] or "").strip()
    named = modality.label_of((row.get("label_name") or "").strip() or " ")
    valid = ", ".join(f"{label} ({class_name})" for label, class_name in enumerate(modality.class_names))
    where = f"line {number} of labels.csv"
    if not text:
        if named is not None:
            return named, None
        return None, Problem(name, "missing label", f"{where} has no label", f"Give it one of {valid}")
    label = modality.label_of(text)
    if label is None:
        return None, Problem(name, "label out of range", f"label {text!r} in {where}", f"The labels are {valid}")
    if named is not None and named != label:
        return label, Problem(
            name,
            "label mismatch",
            f"{where} says label {label} but label_name {row['label_name']!r}",
            f"The labels are {valid}; correct the one that is wrong",
        )
    return label, None


# --- file names with the label as their last digit (Shenzhen, Montgomery) -------------------------------------------


def _name_layout(name: str, prefix: str, source: str) -> Layout:
    pattern = re.compile(rf"{prefix}_(\d+)_(\d+)", re.IGNORECASE)

    def matches(folder: Path) -> Iterator[tuple[Path, str]]:
        for place in (folder / "CXR_png", folder):
            found = [
                (path, match[2])
                for path in (sorted(place.iterdir()) if place.is_dir() else [])
                if _is_image(path) and (match := pattern.fullmatch(path.name[: -len(image_suffix(path))]))
            ]
            if found:
                yield from found
                return

    def read(folder: Path, modality: Modality) -> Folder:
        records, problems = [], []
        for path, digit in matches(folder):
            relative = path.relative_to(folder).as_posix()
            label = modality.label_of(digit)
            if label is None:
                problems.append(
                    Problem(
                        relative,
                        "label out of range",
                        f"the file name ends in label {digit}",
                        f"The last digit must be 0 to {len(modality.class_names) - 1}",
                    )
                )
            records.append(Record(path.absolute(), relative, label, path.name[: -len(image_suffix(path))]))
        if not records:
            raise DataError(f"{folder}: no image named {prefix}_<number>_<label> in it or in its folder CXR_png")
        return Folder(folder, sorted(records, key=lambda record: record.name), problems, name, modality.class_names)

    return Layout(
        name, f"{source}: {prefix}_0001_0.png, last digit the label", lambda folder: any(matches(folder)), read
    )


# --- one folder per class, also below folders named after the splits ------------------------------------------------


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def _class_folders(folder: Path) -> list[tuple[str | None, Path]]:
    """Returns (split, class folder) pairs; the split is None where the classes lie directly in the folder."""
    tops = _subfolders(folder)
    if tops and all(top.name.casefold() in _SPLIT_NAMES for top in tops):
        pairs: list[tuple[str | None, Path]] = [
            (_SPLIT_NAMES[top.name.casefold()], below) for top in tops for below in _subfolders(top)
        ]
    else:
        pairs = [(None, top) for top in tops]
    return [(split, path) for split, path in pairs if next(find_images(path), None) is not None]


def _recognise_class_folders(folder: Path) -> bool:
    return len({path.name.casefold() for _, path in _class_folders(folder)}) >= 2


def _read_class_folders(folder: Path, modality: Modality) -> Folder:
    pairs = _class_folders(folder)
    folders = sorted({path.name for _, path in pairs})
    classes = len(modality.class_names)
    if not folders:
        raise DataError(f"{folder}: no folder with images in it; make one folder per class, named after the class")
    labels = {name: modality.label_of(name) for name in folders}
    taken = [label for label in labels.values() if label is not None]
    if len(folders) > classes or len(set(taken)) != len(taken):
        raise DataError(
            f"{folder}: the folders {folders} do not fit the {classes} classes of modality {modality.name!r}, "
            f"{list(modality.class_names)}. Keep one folder per class, named after it, or list the images in labels.csv"
        )
    free = iter(sorted(set(range(classes)) - set(taken)))
    for name in folders:
        if labels[name] is None:
            labels[name] = next(free)
    class_names = list(modality.class_names)
    for name, label in labels.items():
        if label is not None and modality.label_of(name) is None:
            class_names[label] = name
    records = []
    for split, class_folder in pairs:
        for path in find_images(class_folder):
            name = path.relative_to(folder).as_posix()
            patient = dicom_patient_id(path) or name
            records.append(Record(path.absolute(), name, labels[class_folder.name], patient, split))
    return Folder(folder, sorted(records, key=lambda record: record.name), [], "class_folders", tuple(class_names))


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("labels_csv", "a labels.csv with the columns image,label", _recognise_csv, _read_csv, explicit=True),
        _name_layout("shenzhen", "CHNCXR", "the Shenzhen set as published"),
        _name_layout("montgomery", "MCUCXR", "the Montgomery set as published"),
        Layout(
            "class_folders",
            "one folder of images per class, also inside folders train, val and test",
            _recognise_class_folders,
            _read_class_folders,
        ),
    )
}


def read_folder(dataset_dir: str | Path, layout: str = "auto", modality: str | Modality = "xray") -> Folder:
    """Reads what a folder says about its images, without opening them.

    Args:
        dataset_dir: the folder.
        layout: a key of :data:`LAYOUTS`, or ``"auto"`` to go by what is in the folder.
        modality: preset whose classes the labels must fit.

    Raises:
        DataError: the folder is missing or empty, the layout unknown, or nothing in it is recognised.
    """
    if not str(dataset_dir or ""):
        raise DataError("no dataset_dir given; add --dataset_dir and the folder that holds your images")
    folder = Path(dataset_dir).expanduser().absolute()
    preset = get_modality(modality)
    known = "\n".join(f"  {name}: {entry.description}" for name, entry in LAYOUTS.items())
    if layout != "auto" and layout not in LAYOUTS:
        near = difflib.get_close_matches(str(layout), LAYOUTS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"unknown layout {layout!r}{hint} Use auto or one of:\n{known}")
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataError(f"dataset_dir {folder} {what}; give the folder that holds your images")
    if not any(folder.iterdir()):
        raise DataError(f"dataset_dir {folder} is empty; put images there in one of these layouts:\n{known}")
    if layout != "auto":
        return LAYOUTS[layout].read(folder, preset)
    fitting = [entry for entry in LAYOUTS.values() if entry.recognise(folder)]
    fitting = [entry for entry in fitting if entry.explicit] or fitting
    if not fitting:
        raise DataError(
            f"dataset_dir {folder} has none of the layouts below ({_SUPPORTED} files). Bring the images into one of "
            f"them:\n{known}"
        )
    if len(fitting) > 1:
        raise DataError(
            f"dataset_dir {folder} fits several layouts: {', '.join(entry.name for entry in fitting)}. "
            "Choose one with the option layout"
        )
    return fitting[0].read(folder, preset)


def read_records(dataset_dir: str | Path, layout: str = "auto", modality: str | Modality = "xray") -> list[Record]:
    """Returns the records of a folder sorted by name; like :func:`read_folder`, but any problem is an error.

    Raises:
        DataError: also when the layout's own files have problems.
    """
    folder = read_folder(dataset_dir, layout, modality)
    if folder.problems:
        raise DataError(folder.problems)
    return folder.records
