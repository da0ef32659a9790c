# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Readers that recognise a folder of images by what is in it.

A layout turns a folder into records without opening images. A CSV with columns of other names needs no code: say which
is which (:class:`Table`). To teach the bundle another layout, write the two functions of :class:`Layout` and add it to
:data:`LAYOUTS`.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from bundle.data.errors import DataError, Problem
from bundle.data.modality import Modality, get_modality
from bundle.data.readers import IMAGE_SUFFIXES, dicom_patient_id, image_suffix, is_dicom
from bundle.data.records import SPLITS, Record

__all__ = ["LAYOUTS", "DatasetDir", "Folder", "Layout", "Table", "find_images", "read_folder", "read_records"]

#: A folder, or several whose images are one data set.
DatasetDir = str | Path | Sequence[str | Path]

_SPLIT_NAMES = {name: name for name in SPLITS} | {"training": "train", "valid": "val", "validation": "val"}
# Ranks of layouts that are known by a table.
_OURS, _PUBLISHED = 2, 1
_SUPPORTED = "PNG, JPEG, DICOM and NIfTI"


@dataclass
class Folder:
    """A data set as its layout describes it, before any image is opened.

    Attributes:
        paths: the folder, or several.
        records: one per image, sorted by name.
        problems: what the layout's own files (a CSV, folder names) got wrong.
        layout: name of the layout.
        class_names: the name of each label as this data set uses them.
    """

    paths: tuple[Path, ...]
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
        rank: where a folder fits several layouts, the highest wins: a labels.csv is meant for us, a table with the
            columns of a published set is that set, names of files and folders may be chance.
    """

    name: str
    description: str
    recognise: Callable[[Path], bool]
    read: Callable[[Path, Modality], Folder]
    rank: int = 0


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


# --- tables ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A CSV that lists images, one row each: which column says what, and where the images are.

    Columns are found by name, without regard to case and spaces around it.

    Attributes:
        image: column of the file's name, relative to the images' folder; the ending may be left out.
        label: column of the class, a number or a name.
        label_name: column of the class by name, which must agree with the label; need not be there.
        patient_id: column that says which images belong together; need not be there.
        split: column of the split; need not be there.
        file: name of the table, relative to the data set's folder.
        folder: the images' folder, relative to the data set's; "." for the table's own.
        patient: regular expression that finds the patient in the image's name, as its first group, where no column
            names one; "" counts every image as a patient of its own.
    """

    image: str = "image"
    label: str = "label"
    label_name: str = "label_name"
    patient_id: str = "patient_id"
    split: str = "split"
    file: str = "labels.csv"
    folder: str = "."
    patient: str = ""

    @classmethod
    def named(cls, columns: Mapping[str, Any]) -> Table:
        """Makes a table from what the option layout says.

        Raises:
            DataError: a key or a value that means nothing here.
        """
        keys = [entry.name for entry in fields(cls)]
        for key, value in columns.items():
            if key not in keys:
                near = difflib.get_close_matches(str(key), keys, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else "."
                raise DataError(f"layout: a table has no {key!r}{hint} It may have {', '.join(keys)}")
            if not isinstance(value, str):
                raise DataError(f"layout: {key} is {value!r}; give a text")
        table = cls(**columns)
        try:
            groups = re.compile(table.patient).groups
        except re.error as error:
            raise DataError(f"layout: patient is no regular expression ({error}): {table.patient!r}") from error
        if table.patient and groups != 1:
            raise DataError(f"layout: patient needs one group, the patient, in brackets; it has {groups}")
        return table

    def rows(self, folder: Path) -> list[dict[str, str]]:
        """Reads the table; the keys of a row are this class's own names of the columns.

        Raises:
            DataError: no such file, no readable CSV, no rows, or a column is missing.
        """
        path = folder / self.file
        if not path.is_file():
            raise DataError(
                f"{folder}: no {self.file} in it; add one with the columns {self.image},{self.label} or choose another "
                "layout"
            )
        columns, rows = _read_csv(path)
        names = {column.casefold(): column for column in columns}
        wanted = {key: getattr(self, key).strip() for key in ("image", "label", "label_name", "patient_id", "split")}
        missing = [wanted[key] for key in ("image", "label") if wanted[key].casefold() not in names]
        if missing:
            raise DataError(
                f"{path}: no column {' and no column '.join(map(repr, missing))}; found {columns}. Rename the columns "
                "to image,label and, where known, label_name,patient_id,split; or say which is which, as in "
                "--layout \"{'file': 'labels.csv', 'image': 'id_code', 'label': 'diagnosis', 'folder': 'images'}\""
            )
        if not rows:
            raise DataError(f"{path}: has a header but no rows; list one image per row")
        present = {key: names[name.casefold()] for key, name in wanted.items() if name.casefold() in names}
        return [{key: row[column].strip() for key, column in present.items()} for row in rows]


def _read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Returns the columns of a CSV and its rows by column; names are stripped.

    Raises:
        DataError: not a CSV.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, restval="")
            rows = [{(key or "").strip(): value or "" for key, value in row.items() if key} for row in reader]
            return [column.strip() for column in reader.fieldnames or [] if column.strip()], rows
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a readable CSV ({error}); save it as comma-separated UTF-8 text") from error


def _columns(path: Path) -> list[str]:
    """Returns the columns of a CSV, none where the file is no CSV."""
    try:
        return _read_csv(path)[0] if path.is_file() else []
    except DataError:
        return []


def _has_columns(path: Path, *names: str) -> bool:
    return {name.casefold() for name in names} <= {column.casefold() for column in _columns(path)}


class _Images:
    """The image files of a folder, found by the names that tables give them.

    Args:
        home: the folder.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self._by_stem: dict[str, list[Path]] | None = None

    def find(self, name: str) -> list[Path]:
        """Returns the files that a name may mean: as it stands, or the ending or a folder left out."""
        path = self.home / name
        if path.is_file() or image_suffix(path) in IMAGE_SUFFIXES:
            return [path]
        if self._by_stem is None:
            self._by_stem = defaultdict(list)
            for found in find_images(self.home) if self.home.is_dir() else ():
                self._by_stem[found.name[: -len(image_suffix(found)) or None]].append(found)
        return self._by_stem.get(PurePosixPath(name).name, [])


def _read_table(folder: Path, table: Table, modality: Modality) -> tuple[list[Record], list[Problem]]:
    """Returns the records of one table and what is wrong with its rows."""
    images = _Images(folder / table.folder)
    records: list[Record] = []
    problems: list[Problem] = []
    seen: dict[Path, int] = {}
    for number, row in enumerate(table.rows(folder), start=2):
        where = f"line {number} of {table.file}"
        given = PurePosixPath(row["image"].replace("\\", "/")).as_posix()
        if given == ".":
            message, cure = f"line {number} names no image", "Fill in or delete the line"
            problems.append(Problem(table.file, "missing name", message, cure))
            continue
        if ".." in PurePosixPath(given).parts or PurePosixPath(given).is_absolute():
            message, cure = (
                f"{where} points outside the folder",
                "Move the image into the folder and give its path relative to the table",
            )
            problems.append(Problem(given, "outside", message, cure))
            continue
        found = images.find(given)
        if len(found) > 1:
            message, cure = (
                f"{where} may mean {' or '.join(path.relative_to(folder).as_posix() for path in found[:3])}",
                "Give the name with its ending and folder",
            )
            problems.append(Problem(given, "ambiguous name", message, cure))
            continue
        path = found[0] if found else images.home / given
        name = path.relative_to(folder).as_posix()
        if path in seen:
            message = f"listed in lines {seen[path]} and {number} of {table.file}"
            problems.append(Problem(name, "duplicate name", message, "Keep one of the lines"))
            continue
        seen[path] = number
        label, problem = _label(name, row, where, modality)
        if problem:
            problems.append(problem)
        split: str | None = row.get("split") or None
        if split is not None:
            if split.casefold() not in _SPLIT_NAMES:
                message = f"split {split!r} in {where}"
                problems.append(Problem(name, "unknown split", message, f"Use one of {', '.join(SPLITS)}"))
            split = _SPLIT_NAMES.get(split.casefold())
        patient = row.get("patient_id") or ""
        if not patient and table.patient and (match := re.search(table.patient, PurePosixPath(given).name)):
            patient = match[1]
        records.append(Record(path.absolute(), name, label, patient or name, split))
    return records, problems


def _label(name: str, row: dict[str, str], where: str, modality: Modality) -> tuple[int | None, Problem | None]:
    text = row["label"]
    named = modality.label_of(row.get("label_name") or " ")
    valid = ", ".join(f"{label} ({class_name})" for label, class_name in enumerate(modality.class_names))
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


def _read_tables(folder: Path, tables: Iterable[Table], modality: Modality, layout: str) -> Folder:
    records: list[Record] = []
    problems: list[Problem] = []
    for table in tables:
        found, wrong = _read_table(folder, table, modality)
        records += found
        problems += wrong
    return Folder((folder,), sorted(records, key=lambda record: record.name), problems, layout, modality.class_names)


def _table_layout(name: str, description: str, table: Table, rank: int) -> Layout:
    def recognise(folder: Path) -> bool:
        path = folder / table.file
        return path.is_file() if rank == _OURS else _has_columns(path, table.image, table.label)

    def read(folder: Path, modality: Modality) -> Folder:
        return _read_tables(folder, [table], modality, name)

    return Layout(name, description, recognise, read, rank)


# --- IDRiD ----------------------------------------------------------------------------------------------------------

_IDRID_IMAGES, _IDRID_GRADES = "1. Original Images", "2. Groundtruths"


def _idrid_tables(folder: Path) -> list[Table]:
    """Returns one table for each set as published, "a. Training Set" and "b. Testing Set"; their names repeat."""
    tables = []
    for home in (folder, folder / "B. Disease Grading"):
        for path in sorted((home / _IDRID_GRADES).glob("*.csv")):
            images = [place for place in _subfolders(home / _IDRID_IMAGES) if place.name[:2] == path.name[:2]]
            if images and _has_columns(path, "Image name", "Retinopathy grade"):
                file, place = (part.relative_to(folder).as_posix() for part in (path, images[0]))
                tables.append(Table("Image name", "Retinopathy grade", file=file, folder=place))
    return tables


def _read_idrid(folder: Path, modality: Modality) -> Folder:
    tables = _idrid_tables(folder)
    if not tables:
        raise DataError(
            f"{folder}: no grades of IDRiD in it; give the folder that holds {_IDRID_IMAGES!r} and {_IDRID_GRADES!r}"
        )
    return _read_tables(folder, tables, modality, "idrid")


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
        return Folder((folder,), sorted(records, key=lambda record: record.name), problems, name, modality.class_names)

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
    return Folder((folder,), sorted(records, key=lambda record: record.name), [], "class_folders", tuple(class_names))


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
            _recognise_class_folders,
            _read_class_folders,
        ),
    )
}


def read_folder(
    dataset_dir: DatasetDir, layout: str | Mapping[str, Any] = "auto", modality: str | Modality = "xray"
) -> Folder:
    """Reads what a folder says about its images, without opening them.

    Args:
        dataset_dir: the folder, or several whose images are one data set. The names of images then begin with the name
            of their folder; patients of one id are one patient.
        layout: a key of :data:`LAYOUTS`; or ``"auto"`` to go by what is in the folder; or, for a CSV of any kind, which
            of its columns says what, as the attributes of :class:`Table`.
        modality: preset whose classes the labels must fit.

    Raises:
        DataError: the folder is missing or empty, the layout unknown, or nothing in it is recognised; or several
            folders have one name or name the classes differently.
    """
    if isinstance(dataset_dir, Sequence) and not isinstance(dataset_dir, str):
        return _join([read_folder(one, layout, modality) for one in dataset_dir])
    if not str(dataset_dir or ""):
        raise DataError("no dataset_dir given; add --dataset_dir and the folder that holds your images")
    folder = Path(dataset_dir).expanduser().absolute()
    preset = get_modality(modality)
    known = "\n".join(f"  {name}: {entry.description}" for name, entry in LAYOUTS.items())
    table = Table.named(layout) if isinstance(layout, Mapping) else None
    if table is None and layout not in {"auto", *LAYOUTS}:
        near = difflib.get_close_matches(str(layout), LAYOUTS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"unknown layout {layout!r}{hint} Use auto or one of:\n{known}")
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataError(f"dataset_dir {folder} {what}; give the folder that holds your images")
    if not any(folder.iterdir()):
        raise DataError(f"dataset_dir {folder} is empty; put images there in one of these layouts:\n{known}")
    if table is not None:
        return _read_tables(folder, [table], preset, table.file)
    if layout != "auto":
        return LAYOUTS[str(layout)].read(folder, preset)
    fitting = [entry for entry in LAYOUTS.values() if entry.recognise(folder)]
    fitting = [entry for entry in fitting if entry.rank == max(other.rank for other in fitting)]
    if not fitting:
        tables = [f"{path.name} (columns {_columns(path)})" for path in sorted(folder.glob("*.csv"))[:3]]
        mapping = "--layout \"{'file': 'TABLE', 'image': 'COLUMN', 'label': 'COLUMN', 'folder': 'FOLDER'}\""
        hint = f"\nOr say which column says what in {', '.join(tables)}: {mapping}" if tables else ""
        raise DataError(
            f"dataset_dir {folder} has none of the layouts below ({_SUPPORTED} files). Bring the images into one of "
            f"them:\n{known}{hint}"
        )
    if len(fitting) > 1:
        raise DataError(
            f"dataset_dir {folder} fits several layouts: {', '.join(entry.name for entry in fitting)}. "
            "Choose one with the option layout"
        )
    return fitting[0].read(folder, preset)


def _join(folders: Sequence[Folder]) -> Folder:
    """Makes several folders one."""
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
    records, problems = [], []
    for path, folder in zip(paths, folders, strict=True):
        for record in folder.records:
            name = f"{path.name}/{record.name}"
            patient = name if record.patient_id == record.name else record.patient_id
            records.append(replace(record, name=name, patient_id=patient))
        problems += [replace(problem, name=f"{path.name}/{problem.name}") for problem in folder.problems]
    layout = " and ".join(dict.fromkeys(folder.layout for folder in folders))
    return Folder(
        tuple(paths), sorted(records, key=lambda record: record.name), problems, layout, folders[0].class_names
    )


def read_records(
    dataset_dir: DatasetDir, layout: str | Mapping[str, Any] = "auto", modality: str | Modality = "xray"
) -> list[Record]:
    """Returns the records of a folder sorted by name; like :func:`read_folder`, but any problem is an error.

    Raises:
        DataError: also when the layout's own files have problems.
    """
    folder = read_folder(dataset_dir, layout, modality)
    if folder.problems:
        raise DataError(folder.problems)
    return folder.records
