# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Formatting of numbers and tables, HTML reports, and escaping of names for Markdown, CSV and terminals."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bundle.files import write_text

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

# Texts that spreadsheets read as formulas (OWASP, CSV injection), also after blanks and apostrophes, except numbers.
_FORMULA = re.compile(r"(?!\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*$)'*(?:\s*[=+\-@＝＋－＠]|[\t\r\n])")  # noqa: RUF001
# Semicolons are included because they separate columns in some locales.
_QUOTED = re.compile(r'[,;"\t\r\n]')
# Characters with a meaning anywhere in Markdown: HTML, emphasis, code, links, tables, formulas.
_MARKDOWN = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
# Line beginnings of headings, lists, rules and tables.
_LINE_START = re.compile(r"^([#+=:-]|\d+(?=[.)]))")


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Formats rows as a Markdown table; the first row is the header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def markdown_text(text: str) -> str:
    """Escapes text for Markdown and joins its lines, so that it is displayed literally on one line."""
    line = printable(" ".join(text.split()))
    line = _MARKDOWN.sub(lambda found: "\\" + found[0], line)
    line = _LINE_START.sub(lambda found: found[0] + "\\" if found[0].isdigit() else "\\" + found[0], line)
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def printable(text: str, keep: str = "") -> str:
    """Replaces control characters by their codes, so that a name can neither move the cursor nor reverse its line.

    Bytes of file names that are not UTF-8 are replaced by their codes, too.

    Args:
        text: untrusted text, such as names of files, classes and patients.
        keep: control characters to keep, such as line breaks of multi-line messages.
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
    """Formats rows as CSV in which no cell is read as a formula by spreadsheets.

    A text that would be read as a formula is prefixed with an apostrophe, as OWASP recommends; `csv_value` removes it.
    Numbers are unchanged.

    Args:
        rows: rows of cells, the first of which is the header.

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
    """Returns a cell's original text, without the apostrophe that `csv_text` may have prefixed."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text[1:]) else text


def file_size(size: float) -> str:
    """Formats a number of bytes with three significant digits and a decimal unit."""
    units = ("bytes", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")
    power = next((index for index in range(len(units)) if size < 999.5 * 1000**index), len(units) - 1)
    return f"{three_digits(size / 1000**power)} {units[power]}"


def three_digits(value: float) -> str:
    """Formats a number with three significant digits, or as a whole number from 1000 on, without an exponent."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


def write_html(path: str | os.PathLike[str], template: Path, **content: Any) -> None:
    """Renders a Jinja template and writes it atomically; all values except ``Markup`` are escaped.

    Args:
        path: file to write.
        template: path of the template.
        content: variables of the template; a missing one is an error.
    """
    environment = Environment(
        loader=FileSystemLoader(template.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    text = environment.get_template(template.name).render(**content)
    write_text(path, text)
