# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Reads CSV files, and refuses malformed ones instead of losing or shifting rows."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from bundle.data.errors import DataError

__all__ = ["columns", "has_columns", "read_csv"]

_DELIMITERS = ",;\t"


def read_csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Reads a CSV whose columns are separated by commas, semicolons or tabs.

    Args:
        path: path of the file.

    Returns:
        Names of the columns; and the rows, each with the number of its first line, short rows filled up with "".

    Raises:
        DataError: not a CSV, a row has more cells than there are columns, or a stray quotation mark joins rows.
    """
    first = 1
    try:
        lines = _lines(path)
        delimiter = _delimiter(lines)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        names = [name.strip() for name in next(reader, [])]
        _refuse_joined_rows(path, lines[: reader.line_num], first, names, len(names), delimiter)
        rows = []
        first = reader.line_num + 1
        for cells in reader:
            _refuse_joined_rows(path, lines[first - 1 : reader.line_num], first, cells, len(names), delimiter)
            if any(cells[len(names) :]):
                raise DataError(
                    f"{path}: line {first} has {len(cells)} cells, the header {len(names)}. Put cells that hold a "
                    "comma in quotation marks"
                )
            if any(cells):
                rows.append((first, cells + [""] * (len(names) - len(cells))))
            first = reader.line_num + 1
        return names, rows
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a readable CSV ({error}); save it as comma-separated UTF-8 text") from error
    except csv.Error as error:
        raise DataError(
            f"{path}: the row that begins in line {first} cannot be read ({error}). Where it has a stray quotation "
            "mark that is never closed, or closed within a cell, delete it; write one that belongs to a cell twice, in "
            "a cell that begins and ends with one"
        ) from error


def _lines(path: Path) -> list[str]:
    with open(path, newline="", encoding="utf-8-sig") as stream:
        return list(stream)


def _delimiter(lines: Sequence[str]) -> str:
    return next((mark for mark in _DELIMITERS if lines and mark in lines[0]), ",")


def _refuse_joined_rows(
    path: Path, lines: Sequence[str], first: int, cells: Sequence[str], n_columns: int, delimiter: str
) -> None:
    """Refuses a row over several lines that is probably several rows, joined by stray quotation marks.

    It is where a line within a cell, or both the first and the last line, have as many delimiters as the header.
    """
    if len(lines) < 2 or n_columns < 2:
        return
    within = [line for cell in cells if len(parts := cell.splitlines()) > 1 for line in parts]
    ends = [lines[0], lines[-1]]
    if any(line.count(delimiter) == n_columns - 1 for line in within) or all(
        line.count(delimiter) == n_columns - 1 for line in ends
    ):
        raise DataError(
            f"{path}: lines {first} to {first + len(lines) - 1} are one row by their quotation marks, but look like "
            "several: a stray mark would swallow images. Delete it; or, where a cell is meant to have these lines, "
            "write it in one"
        )


def columns(path: Path) -> list[str]:
    """Returns the names of a CSV's columns; an empty list where the file is no CSV."""
    try:
        lines = _lines(path) if path.is_file() else []
        names = next(csv.reader(lines, delimiter=_delimiter(lines)), [])
    except (UnicodeDecodeError, csv.Error, OSError):
        return []
    return [name.strip() for name in names if name.strip()]


def has_columns(path: Path, *names: str) -> bool:
    """Returns whether a file is a CSV with columns of these names, compared without regard to case."""
    return {name.casefold() for name in names} <= {column.casefold() for column in columns(path)}
