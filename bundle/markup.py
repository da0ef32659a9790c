# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Numbers and tables as people read them, and reports in HTML."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bundle.files import atomic_write

__all__ = ["markdown_table", "three_digits", "write_html"]


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Lays rows out as a table in Markdown; the first names the columns."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


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
