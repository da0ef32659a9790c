# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Reads records from CSV files that list the images of a data set."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bundle.data.classes import describe_classes, label_classes, label_numbered_classes
from bundle.data.csv_files import read_csv
from bundle.data.errors import DataError, Problem
from bundle.data.listing import FolderListing
from bundle.data.modality import Modality
from bundle.data.named_images import NamedImages
from bundle.data.patients import check_pattern, find_patient
from bundle.data.records import SPLIT_NAMES, SPLITS, Record, says_none
from bundle.markup import csv_value

__all__ = ["Table", "read_tables"]

#: Common names of patient columns, letters only; used where a table has no column of the configured name.
_PATIENT_COLUMNS = re.compile(
    r"(patients?|subjects?|persons?|participants?|cases?)(id|ids|identifier|no|nr|num|number|name|code|key|uid)?"
    r"|mrn|pid|ptid|patid|subj|subjid|idpatient|idsubject"
)

#: Common names of split columns, letters only.
_SPLIT_COLUMNS = re.compile(r"(data)?(sub)?(sets?|splits?|folds?|partitions?)(name|type)?|phase|usage")

_REQUIRED = ("image", "label")
_OPTIONAL = ("label_name", "patient_id", "split", "source")


@dataclass(frozen=True)
class Table:
    """Names of the columns of a CSV that lists one image per row, and places of the CSV and of the images.

    Names of columns are compared without regard to case and surrounding spaces.

    Attributes:
        image: column of the image's file name, relative to the folder of the images, with or without file extension.
        label: column of the class, a number or a name.
        label_name: column of the name of the class, which must agree with the label; optional.
        patient_id: column of the patient; optional.
        split: column of the split; optional.
        file: path of the CSV, relative to the data set's folder.
        folder: folder of the images, relative to the data set's folder; "." for the latter.
        patient: regular expression whose group is the patient, searched in the image's name where no column gives one;
            "" for none.
        source: column of the collection, hospital or device that the image comes from; optional.
    """

    image: str = "image"
    label: str = "label"
    label_name: str = "label_name"
    patient_id: str = "patient_id"
    split: str = "split"
    file: str = "labels.csv"
    folder: str = "."
    patient: str = ""
    source: str = "source"

    @classmethod
    def named(cls, columns: Mapping[str, Any]) -> Table:
        """Returns the table that the option ``layout`` describes.

        Raises:
            DataError: a key is no attribute of a table, or a value is no text or no valid pattern.
        """
        keys = [entry.name for entry in fields(cls)]
        for key, value in columns.items():
            if key not in keys:
                near = difflib.get_close_matches(str(key), keys, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else "."
                raise DataError(f"layout: a table has no {key!r}{hint} It may have {', '.join(keys)}")
            if not isinstance(value, str):
                raise DataError(f"layout: {key} is {value!r}; give a text")
        # Tables are compared and hashed by path, so that "sub/.." and "." must be spelt alike.
        places = {key: Path(os.path.normpath(columns[key])).as_posix() for key in ("file", "folder") if key in columns}
        table = cls(**{**columns, **places})
        check_pattern(table.patient, "layout: patient")
        return table

    def rows(self, folder: Path) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
        """Reads the rows of the CSV.

        Args:
            folder: absolute path of the data set's folder.

        Returns:
            Line number and content of each row, a dictionary whose keys are attributes of this class; and notes on
            columns that were recognised by a similar name.

        Raises:
            DataError: the file is missing, is no readable CSV or has no rows; or a column is missing or occurs twice.
        """
        path = folder / self.file
        if not path.is_file():
            raise DataError(
                f"{folder}: no {self.file} in it; add one with the columns {self.image},{self.label} or choose another "
                "layout"
            )
        found, rows = read_csv(path)
        wanted = {key: getattr(self, key).strip() for key in (*_REQUIRED, *_OPTIONAL)}
        present, notes = self._present(path, found, wanted)
        missing = [wanted[key] for key in _REQUIRED if key not in present]
        if missing:
            raise DataError(
                f"{path}: no column {' and no column '.join(map(repr, missing))}; found {found}. Rename the columns "
                "to image,label and, where known, label_name,patient_id,split; or say which is which, as in "
                "--layout \"{'file': 'labels.csv', 'image': 'id_code', 'label': 'diagnosis', 'folder': 'images'}\""
            )
        if not rows:
            raise DataError(f"{path}: has a header but no rows; list one image per row")
        if "split" not in present:
            notes += self._unused_splits(found, [cells for _, cells in rows])
        return [
            (line, {key: csv_value(cells[place].strip()) for key, place in present.items()}) for line, cells in rows
        ], notes

    def _unused_splits(self, found: list[str], rows: Sequence[Sequence[str]]) -> list[str]:
        """Returns a note for each column that seems to contain splits but has another name."""
        notes = []
        for place, column in enumerate(found):
            words = {cells[place].strip() for cells in rows} - {""}
            if (
                _SPLIT_COLUMNS.fullmatch(_column_letters(column))
                and words
                and {*map(str.casefold, words)} <= {*SPLIT_NAMES}
            ):
                notes.append(
                    f"Column {column!r} of {self.file} says {', '.join(sorted(words))}, but is not used: if these are "
                    f"the splits, rename it to {self.split}, or name it: --layout \"{{'split': {column!r}}}\"."
                )
        return notes

    def _present(self, path: Path, found: list[str], wanted: dict[str, str]) -> tuple[dict[str, int], list[str]]:
        """Returns the index of each column that exists, and notes."""
        present: dict[str, int] = {}
        for key, name in wanted.items():
            places = [place for place, column in enumerate(found) if column.casefold() == name.casefold()]
            if len(places) > 1:
                raise DataError(
                    f"{path}: {len(places)} columns are called {name!r} ({', '.join(found[p] for p in places)}; "
                    "capital letters and spaces do not count). Delete or rename all but one"
                )
            if places:
                present[key] = places[0]
        if "patient_id" in present:
            return present, []
        alike = [place for place, column in enumerate(found) if _names_patients(column)]
        if len(alike) > 1:
            raise DataError(
                f"{path}: {' and '.join(repr(found[place]) for place in alike)} look like columns of patients. Rename "
                f"the right one to {self.patient_id}, or name it: --layout \"{{'patient_id': '{found[alike[0]]}'}}\""
            )
        if not alike:
            return present, []
        note = f"Column {found[alike[0]]!r} of {self.file} is taken to say whose the images are."
        return {**present, "patient_id": alike[0]}, [note]


def _names_patients(column: str) -> bool:
    return _PATIENT_COLUMNS.fullmatch(_column_letters(column)) is not None


def _column_letters(column: str) -> str:
    return re.sub(r"[\W\d_]+", "", column).casefold()


def read_tables(
    listing: FolderListing, tables: Iterable[Table], modality: Modality
) -> tuple[list[Record], list[Problem], tuple[str, ...], list[str]]:
    """Reads the records of one or more tables.

    Args:
        listing: listing of the data set's folder.
        tables: tables, no two of which list the same image.
        modality: preset of the kind of image.

    Returns:
        Records, problems of single rows, class names by label, and notes.

    Raises:
        DataError: a table cannot be read at all.
    """
    rows: list[tuple[Table, int, dict[str, str]]] = []
    notes: list[str] = []
    for table in tables:
        found, more = table.rows(listing.folder)
        rows += [(table, line, _without_none(row, modality)) for line, row in found]
        notes += more
    used, label_of = _labels([row for _, _, row in rows], modality)
    if used is modality and not (modality.ordered or modality.has_fixed_classes):
        notes += _numbers_note(rows, modality)
    records: list[Record] = []
    problems: list[Problem] = []
    images: dict[Table, NamedImages] = {}
    seen: dict[Path, tuple[str, int]] = {}
    for table, line, row in rows:
        if table not in images:
            names = [other["image"] for owner, _, other in rows if owner == table]
            images[table] = NamedImages(listing, _home(listing, table), names)
        where = f"line {line} of {table.file}"
        path, problem = images[table].find(row["image"], where, table.file)
        if path is None or problem:
            problems += [problem] if problem else []
            continue
        name = path.relative_to(listing.folder).as_posix()
        if path in seen:
            file, first = seen[path]
            message = f"listed in line {first} of {file} and in {where}"
            problems.append(Problem(name, "duplicate name", message, "Keep one of the lines"))
            continue
        seen[path] = table.file, line
        label, problem = _label(name, row, where, used, label_of)
        problems += [problem] if problem else []
        split: str | None = row.get("split") or None
        if split is not None:
            if split.casefold() not in SPLIT_NAMES:
                message = f"split {split!r} in {where}"
                problems.append(Problem(name, "unknown split", message, f"Use one of {', '.join(SPLITS)}"))
            split = SPLIT_NAMES.get(split.casefold())
        patient = row.get("patient_id") or find_patient(table.patient, path.relative_to(images[table].home))
        source = " ".join(row.get("source", "").split())
        known = source if source and not says_none(source) else None
        records.append(Record(path.absolute(), name, label, patient or name, split, known))
    return records, problems, used.class_names, notes


def _without_none(row: dict[str, str], modality: Modality) -> dict[str, str]:
    """Empties the cells of a row that mark a missing label or patient, unless the text is the name of a class."""
    none = [key for key in ("label", "label_name", "patient_id") if key in row and says_none(row[key])]
    return row | {key: "" for key in none if key == "patient_id" or modality.label_of(row[key]) is None}


def _home(listing: FolderListing, table: Table) -> Path:
    """Returns the folder of a table's images; raises DataError where it is outside of the data set's folder."""
    home = listing.folder / table.folder
    if listing.folder not in (home, *home.parents) or ".." in Path(table.folder).parts:
        raise DataError(
            f"layout: folder {table.folder!r} lies outside of {listing.folder}; give dataset_dir the folder that holds "
            "both the images and the table"
        )
    return home


def _numbers_note(rows: Sequence[tuple[Table, int, dict[str, str]]], modality: Modality) -> list[str]:
    """Returns a note on the classes that numbers stand for, where their column is not the bundle's own ``label``."""
    columns = {table.label for table, *_ in rows if table.label.casefold() != Table.label}
    if not columns or any(row.get("label_name") or not row["label"].isdecimal() for *_, row in rows):
        return []
    return [
        f"The numbers of column {', '.join(sorted(columns))} are taken for {describe_classes(modality)}, the classes "
        f"of modality {modality.name!r}; if they mean others, add a column label_name."
    ]


def _labels(rows: Sequence[dict[str, str]], modality: Modality) -> tuple[Modality, Callable[[str], int | None]]:
    """Returns the preset with the classes of the rows, and the function that maps the text of a cell to its label."""
    pairs = {(row["label"], row.get("label_name") or "") for row in rows}
    if all(number.isdecimal() and name for number, name in pairs):
        numbered = label_numbered_classes([(int(number), name) for number, name in pairs], modality)
        if numbered is not None:
            named = modality.with_classes(numbered)
            return named, named.label_of
    texts = {text for label, name in pairs for text in ([label] if label else [name]) if text}
    class_names, labels = label_classes(texts, modality)
    named = modality.with_classes(class_names) if class_names != modality.class_names else modality

    def label_of(text: str) -> int | None:
        return labels[text] if text in labels else named.label_of(text)

    return named, label_of


def _label(
    name: str, row: dict[str, str], where: str, modality: Modality, label_of: Callable[[str], int | None]
) -> tuple[int | None, Problem | None]:
    text, given = row["label"], row.get("label_name") or ""
    named = label_of(given) if given else None
    valid = describe_classes(modality)
    if not text:
        if named is not None:
            return named, None
        return None, Problem(name, "missing label", f"{where} has no label", f"Give it one of {valid}")
    label = label_of(text)
    if label is None:
        cure = f"The labels are {valid}"
        if not modality.ordered and not modality.has_fixed_classes:
            cure += "; classes of other names need a name in every row, as label or in the column label_name"
        return None, Problem(name, "label out of range", f"label {text!r} in {where}", cure)
    if given and named != label:
        return label, Problem(
            name,
            "label mismatch",
            f"{where} says label {label} but label_name {given!r}",
            f"The labels are {valid}; correct the one that is wrong",
        )
    return label, None
