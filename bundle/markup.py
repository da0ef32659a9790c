# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Numbers and tables as people read them, reports in HTML, and names that must not act where they are shown."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bundle.files import atomic_write

__all__ = [
    "csv_text",
    "csv_value",
    "file_size",
    "markdown_table",
    "markdown_text",
    "printable",
    "three_digits",
    "write_html",
]

# What spreadsheets take for a formula (OWASP, CSV injection), behind blanks and apostrophes as well, but no number.
_FORMULA = re.compile(r"(?!\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*$)'*(?:\s*[=+\-@＝＋－＠]|[\t\r\n])")  # noqa: RUF001
# Spreadsheets of some countries part columns by semicolons.
_QUOTED = re.compile(r'[,;"\t\r\n]')
# What means something to Markdown anywhere: HTML, emphasis, code, links, tables, formulas.
_MARKDOWN = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
# What makes a line a heading, a list, a rule or a table.
_LINE_START = re.compile(r"^([#+=:-]|\d+(?=[.)]))")


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Lays rows out as a table in Markdown; the first names the columns."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def markdown_text(text: str) -> str:
    """Lets text stand in Markdown as it is: one line of it, without tags, links, headings or columns."""
    line = printable(" ".join(text.split()))
    line = _MARKDOWN.sub(lambda found: "\\" + found[0], line)
    line = _LINE_START.sub(lambda found: found[0] + "\\" if found[0].isdigit() else "\\" + found[0], line)
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def printable(text: str, keep: str = "") -> str:
    """Shows control characters as their codes, so that a name neither moves a cursor nor turns its line around.

    Bytes of file names that are not UTF-8 are shown as codes, too.

    Args:
        text: names of files, classes and patients, whoever chose them.
        keep: control characters that stay, such as the line break of a message of several lines.
    """
    return "".join(
        character
        if character in keep or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else _code(character)
        for character in text
    )


def _code(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a file name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Lays rows out as CSV in which no spreadsheet finds a formula.

    A text that a spreadsheet would take for one gets an apostrophe in front, as OWASP advises; `csv_value` takes it
    away. Numbers stay as they are.

    Args:
        rows: the first names the columns.

    Returns:
        Lines that end with a line feed.
    """

    def cell(value: object) -> str:
        text = str(value)
        if isinstance(value, str) and _FORMULA.match(text):
            text = f"'{text}"
        return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text

    return "".join(",".join(map(cell, row)) + "\n" for row in rows)


def csv_value(text: str) -> str:
    """Returns what a cell held before `csv_text` put an apostrophe in front."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text[1:]) else text


def file_size(size: float) -> str:
    """Writes a number of bytes with three digits and a decimal unit."""
    units = ("bytes", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")
    power = next((index for index in range(len(units)) if size < 999.5 * 1000**index), len(units) - 1)
    return f"{three_digits(size / 1000**power)} {units[power]}"


def three_digits(value: float) -> str:
    """Writes a number with three significant digits; from 1000 on to the unit, where Python takes to an exponent."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


def write_html(path: str | os.PathLike[str], template: Path, **content: Any) -> None:
    """Fills a template of Jinja and writes it, whole or not at all; whatever is not ``Markup`` is escaped.

    Args:
        path: the file.
        template: the file with the template.
        content: what the template asks for; a name that is missing is an error.
    """
    environment = Environment(
        loader=FileSystemLoader(template.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    text = environment.get_template(template.name).render(**content)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
