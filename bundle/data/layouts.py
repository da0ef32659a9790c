# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Recognises the layout of a data set's folder and reads records from it.

A layout turns the listing of a folder into records without opening images. A CSV with other column names needs no new
code: the option ``layout`` maps its columns (:class:`bundle.data.tables.Table`). To support another layout, write the
two functions of :class:`Layout` and add it to :data:`LAYOUTS`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bundle.class_names import class_names_problem
from bundle.data.class_folders import contradicting_folders, has_class_folders, read_class_folders
from bundle.data.classes import describe_classes
from bundle.data.csv_files import columns, has_columns
from bundle.data.errors import DataError, Problem
from bundle.data.listing import FolderListing, LeftOut, list_folder, summarise_left_out
from bundle.data.modality import Modality, get_modality
from bundle.data.patients import check_pattern, find_patient, spelling_problems
from bundle.data.readers import SUPPORTED_FORMATS, dicom_patient_id, image_format, image_stem
from bundle.data.records import Record, says_none
from bundle.data.tables import Table, read_tables

__all__ = ["LAYOUTS", "DatasetDir", "Folder", "Layout", "read_folder"]

#: Path of a folder, or of several folders whose images form one data set.
DatasetDir = str | Path | Sequence[str | Path]

# Ranks of the layouts that are recognised by a table.
_OURS, _PUBLISHED = 2, 1


@dataclass
class Folder:
    """A data set as its layout describes it, before any image is opened.

    Attributes:
        paths: absolute paths of the folders that form the data set.
        records: one record per image, sorted by name.
        problems: errors in the listing, the tables and the names of the files.
        layout: name of the layout.
        class_names: name of each label in this data set.
        left_out: files that are not used.
        notes: remarks for the user on how the folder was read.
    """

    paths: tuple[Path, ...]
    records: list[Record]
    problems: list[Problem]
    layout: str
    class_names: tuple[str, ...]
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class _Content:
    """Content that a layout reads from the listing of a folder.

    Attributes:
        records: one record per image, in any order.
        class_names: name of each label.
        problems: errors in the tables and the names of the files.
        used: files other than images that were read, such as tables.
        reasons: images that are not used, with the reason.
        notes: remarks for the user.
    """

    records: list[Record]
    class_names: tuple[str, ...]
    problems: list[Problem] = field(default_factory=list)
    used: list[Path] = field(default_factory=list)
    reasons: list[tuple[Path, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Layout:
    """A convention for the files and folders of a data set.

    Attributes:
        name: value of the option ``layout`` that selects it.
        description: content of such a folder, for messages.
        recognise: function that returns whether a folder follows this layout.
        read: function that reads the content of a folder from its listing.
        rank: priority where a folder fits several layouts; the highest wins. A labels.csv is certain to be meant for
            this bundle, a table with the columns of a published data set is very likely that data set, and names of
            files and folders may match by chance.
    """

    name: str
    description: str
    recognise: Callable[[FolderListing], bool]
    read: Callable[[FolderListing, Modality], _Content]
    rank: int = 0


def _from_tables(listing: FolderListing, tables: Sequence[Table], modality: Modality) -> _Content:
    records, problems, class_names, notes = read_tables(listing, tables, modality)
    notes += contradicting_folders(records, modality.with_classes(class_names))
    return _Content(records, class_names, problems, [listing.folder / table.file for table in tables], notes=notes)


def _table_layout(name: str, description: str, table: Table, rank: int) -> Layout:
    def recognise(listing: FolderListing) -> bool:
        path = listing.folder / table.file
        return path.is_file() if rank == _OURS else has_columns(path, table.image, table.label)

    return Layout(
        name, description, recognise, lambda listing, modality: _from_tables(listing, [table], modality), rank
    )


# --- IDRiD ----------------------------------------------------------------------------------------------------------

_IDRID_IMAGES, _IDRID_GRADES = "1. Original Images", "2. Groundtruths"


def _idrid_tables(listing: FolderListing) -> list[Table]:
    """Returns one table for each published set ("a. Training Set", "b. Testing Set"), whose image names overlap."""
    folder, tables = listing.folder, []
    for home in (folder, folder / "B. Disease Grading"):
        for path in sorted((home / _IDRID_GRADES).glob("*.csv")):
            images = [sub for sub in listing.subfolders(home / _IDRID_IMAGES) if sub.name[:2] == path.name[:2]]
            if images and has_columns(path, "Image name", "Retinopathy grade"):
                file, place = (part.relative_to(folder).as_posix() for part in (path, images[0]))
                tables.append(Table("Image name", "Retinopathy grade", file=file, folder=place))
    return tables


def _read_idrid(listing: FolderListing, modality: Modality) -> _Content:
    tables = _idrid_tables(listing)
    if not tables:
        raise DataError(
            f"{listing.folder}: no grades of IDRiD in it; give the folder that holds {_IDRID_IMAGES!r} and "
            f"{_IDRID_GRADES!r}"
        )
    return _from_tables(listing, tables, modality)


# --- file names with the label as their last digit (Shenzhen, Montgomery) -------------------------------------------


def _name_layout(name: str, prefix: str, source: str) -> Layout:
    pattern = re.compile(rf"{prefix}_(\d+)_(\d+)", re.IGNORECASE)

    def matches(listing: FolderListing) -> Iterator[tuple[Path, str]]:
        for place in (listing.folder / "CXR_png", listing.folder):
            found = [
                (path, match[2])
                for path in listing.images
                if path.parent == place and (match := pattern.fullmatch(image_stem(path)))
            ]
            if found:
                yield from found
                return

    def read(listing: FolderListing, modality: Modality) -> _Content:
        records, problems = [], []
        for path, digit in matches(listing):
            label = modality.label_of(digit)
            if label is None:
                message, cure = f"the file name ends in label {digit}", f"The labels are {describe_classes(modality)}"
                problems.append(Problem(listing.name(path), "label out of range", message, cure))
            records.append(Record(path, listing.name(path), label, image_stem(path)))
        if not records:
            raise DataError(
                f"{listing.folder}: no image named {prefix}_<number>_<label> in it or in its folder CXR_png"
            )
        return _Content(records, modality.class_names, problems)

    return Layout(
        name, f"{source}: {prefix}_0001_0.png, last digit the label", lambda listing: any(matches(listing)), read
    )


def _read_class_folders(listing: FolderListing, modality: Modality) -> _Content:
    records, class_names, reasons, notes = read_class_folders(listing, modality)
    return _Content(records, class_names, reasons=reasons, notes=notes)


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        _table_layout("labels_csv", "a labels.csv with the columns image,label", Table(), _OURS),
        _name_layout("shenzhen", "CHNCXR", "the Shenzhen set as published"),
        _name_layout("montgomery", "MCUCXR", "the Montgomery set as published"),
        _table_layout(
            "aptos",
            "APTOS 2019 as published: train.csv with id_code,diagnosis, and train_images/",
            Table("id_code", "diagnosis", file="train.csv", folder="train_images"),
            _PUBLISHED,
        ),
        _table_layout(
            "eyepacs",
            "EyePACS (Kaggle 2015) as published: trainLabels.csv with image,level, and 10_left.jpeg, 10_right.jpeg",
            Table("image", "level", file="trainLabels.csv", patient=r"^(.+)_(?:left|right)$"),
            _PUBLISHED,
        ),
        Layout(
            "idrid",
            f"the disease grading of IDRiD as published: {_IDRID_IMAGES}/ and {_IDRID_GRADES}/",
            lambda folder: bool(_idrid_tables(folder)),
            _read_idrid,
            _PUBLISHED,
        ),
        Layout(
            "class_folders",
            "one folder of images per class, also inside folders train, val and test",
            has_class_folders,
            _read_class_folders,
        ),
    )
}


def read_folder(
    dataset_dir: DatasetDir,
    layout: str | Mapping[str, Any] = "auto",
    modality: str | Modality = "xray",
    patient_pattern: str = "",
) -> Folder:
    """Reads the records of a folder without decoding its images, and accounts for every file in it.

    Args:
        dataset_dir: path of the folder, or of several folders that form one data set. With several, the names of images
            begin with the name of their folder, and equal patient ids mean the same patient.
        layout: a key of :data:`LAYOUTS`; ``"auto"`` to recognise the layout; or, for any CSV, a mapping from attributes
            of :class:`bundle.data.tables.Table` to the names of its columns and files.
        modality: preset whose classes the labels must fit.
        patient_pattern: regular expression whose group is the patient, searched in the name of each image for which no
            column gives a patient; "" for none. Images that still have no patient get the PatientID of their DICOM
            file, if there is one.

    Raises:
        DataError: the folder is missing or empty, the layout is unknown or not recognised, or several folders have the
            same name or different class names.
    """
    if isinstance(dataset_dir, Sequence) and not isinstance(dataset_dir, str):
        folder = _join([_read_one(one, layout, modality, patient_pattern) for one in dataset_dir])
    else:
        folder = _read_one(dataset_dir, layout, modality, patient_pattern)
    return replace(folder, problems=[*folder.problems, *spelling_problems(folder.records)])


def _read_one(
    dataset_dir: str | Path, layout: str | Mapping[str, Any], modality: str | Modality, patient_pattern: str
) -> Folder:
    """Reads one folder; see :func:`read_folder`."""
    if not str(dataset_dir or ""):
        raise DataError("no dataset_dir given; add --dataset_dir and the folder that holds your images")
    folder = Path(dataset_dir).expanduser().absolute()
    preset = get_modality(modality)
    check_pattern(patient_pattern, "patient_pattern")
    table = Table.named(layout) if isinstance(layout, Mapping) else None
    if table is None and layout not in {"auto", *LAYOUTS}:
        near = difflib.get_close_matches(str(layout), LAYOUTS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"unknown layout {layout!r}{hint} Use auto or one of:\n{_known_layouts()}")
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataError(f"dataset_dir {folder} {what}; give the folder that holds your images")
    if not any(folder.iterdir()):
        raise DataError(f"dataset_dir {folder} is empty; put images there in one of these layouts:\n{_known_layouts()}")
    listing = list_folder(folder)
    if table is not None:
        name, content = table.file, _from_tables(listing, [table], preset)
    else:
        chosen = LAYOUTS[str(layout)] if layout != "auto" else _choose(listing)
        name, content = chosen.name, chosen.read(listing, preset)
    if problem := class_names_problem(content.class_names):
        raise DataError(f"{folder}: the names of the classes cannot be used: {problem}. Rename the classes")
    records = [_with_patient(record, patient_pattern) for record in content.records]
    left_out = listing.left_out([*(record.image for record in records), *content.used], content.reasons)
    return Folder(
        (folder,),
        sorted(records, key=lambda record: record.name),
        [*listing.problems, *content.problems],
        name,
        content.class_names,
        left_out,
        content.notes,
    )


def _known_layouts() -> str:
    return "\n".join(f"  {name}: {entry.description}" for name, entry in LAYOUTS.items())


def _choose(listing: FolderListing) -> Layout:
    """Returns the layout of highest rank that a folder fits; raises DataError for none or several."""
    folder = listing.folder
    fitting = [entry for entry in LAYOUTS.values() if entry.recognise(listing)]
    fitting = [entry for entry in fitting if entry.rank == max(other.rank for other in fitting)]
    if not fitting:
        tables = [f"{path.name} (columns {columns(path)})" for path in sorted(folder.glob("*.csv"))[:3]]
        mapping = "--layout \"{'file': 'TABLE', 'image': 'COLUMN', 'label': 'COLUMN', 'folder': 'FOLDER'}\""
        hint = f"\nOr say which column says what in {', '.join(tables)}: {mapping}" if tables else ""
        there = "\n".join([*map(str, listing.problems[:3]), *summarise_left_out(listing.left_out([]))])
        raise DataError(
            f"dataset_dir {folder} has none of the layouts below ({SUPPORTED_FORMATS} files). Bring the images into "
            f"one of them:\n{_known_layouts()}{hint}\n{there}".rstrip()
        )
    if len(fitting) > 1:
        raise DataError(
            f"dataset_dir {folder} fits several layouts: {', '.join(entry.name for entry in fitting)}. "
            "Choose one with the option layout"
        )
    return fitting[0]


def _with_patient(record: Record, patient_pattern: str) -> Record:
    if record.has_patient:
        return record
    patient = find_patient(patient_pattern, Path(record.name))
    if patient is None and image_format(record.image) == "DICOM":
        patient = dicom_patient_id(record.image)
        patient = None if patient is None or says_none(patient) else patient
    return replace(record, patient_id=patient or record.name)


def _join(folders: Sequence[Folder]) -> Folder:
    """Joins several folders into one data set."""
    if not folders:
        raise DataError("dataset_dir is an empty list; name one folder or several")
    if len(folders) == 1:
        return folders[0]
    paths = [path for folder in folders for path in folder.paths]
    for path in paths:
        if [other.name for other in paths].count(path.name) > 1:
            raise DataError(f"dataset_dir names several folders called {path.name!r}; rename one of them")
    if len({folder.class_names for folder in folders}) > 1:
        named = "; ".join(
            f"{path.name}: {', '.join(folder.class_names)}" for path, folder in zip(paths, folders, strict=True)
        )
        raise DataError(
            f"the folders of dataset_dir name their classes differently ({named}); give them one set of names"
        )
    records, problems, left_out, notes = [], [], [], []
    for path, folder in zip(paths, folders, strict=True):
        for record in folder.records:
            name = f"{path.name}/{record.name}"
            patient = record.patient_id if record.has_patient else name
            records.append(replace(record, name=name, patient_id=patient))
        problems += [replace(problem, name=f"{path.name}/{problem.name}") for problem in folder.problems]
        left_out += [replace(entry, name=f"{path.name}/{entry.name}") for entry in folder.left_out]
        notes += [f"{path.name}: {note}" for note in folder.notes]
    records.sort(key=lambda record: record.name)
    layout = " and ".join(dict.fromkeys(folder.layout for folder in folders))
    return Folder(tuple(paths), records, problems, layout, folders[0].class_names, left_out, notes)
