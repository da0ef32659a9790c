# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from bundle.files import content_digest
from bundle.markup import (
    csv_text,
    csv_value,
    file_size,
    markdown_table,
    markdown_text,
    printable,
    three_digits,
    write_html,
)


def test_table_has_a_rule_under_its_head() -> None:
    assert markdown_table([["", "a"], ["b", "1"]]) == "|  | a |\n|---|---|\n| b | 1 |"


@pytest.mark.parametrize(
    ("value", "text"), [(0.01234, "0.0123"), (842.4, "842"), (999.6, "1000"), (1630.2, "1630"), (-12345.6, "-12346")]
)
def test_numbers_have_three_digits_and_no_exponent(value: float, text: str) -> None:
    assert three_digits(value) == text


def test_page_escapes_what_is_not_markup(tmp_path: Path) -> None:
    template = tmp_path / "page.j2"
    template.write_text("<p>{{ name }}{{ picture }}</p>")
    write_html(tmp_path / "page.html", template, name="<script>", picture=Markup("<svg/>"))
    assert (tmp_path / "page.html").read_text() == "<p>&lt;script&gt;<svg/></p>"


def test_page_that_lacks_a_value_is_not_written(tmp_path: Path) -> None:
    template = tmp_path / "page.j2"
    template.write_text("{{ name }}")
    with pytest.raises(UndefinedError, match="name"):
        write_html(tmp_path / "page.html", template)
    assert [path.name for path in tmp_path.iterdir()] == ["page.j2"]


def test_equal_content_has_equal_names() -> None:
    assert content_digest({"a": 1, "b": [2, None]}) == content_digest({"b": [2, None], "a": 1})
    assert content_digest({"a": 1}) != content_digest({"a": 2})
    assert len(content_digest({}, 10)) == 10


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert('x')</script>", "&lt;script&gt;alert('x')&lt;/script&gt;"),
        ("# not a\nheading", "\\# not a heading"),
        ("1. no list", "1\\. no list"),
        ("a | b", "a \\| b"),
        ("[link](javascript:x)", "\\[link\\](javascript:x)"),
        ("![image](x)", "!\\[image\\](x)"),
        ("*b* `c` _d_ no_dr", "\\*b\\* \\`c\\` \\_d\\_ no_dr"),
        ("\x1b[31mred\u202e", "\\\\x1b\\[31mred\\\\u202e"),
        ("CC BY-NC 4.0 (https://example.org/by_nc/)", "CC BY-NC 4.0 (https://example.org/by_nc/)"),
    ],
)
def test_text_means_nothing_to_markdown(text: str, shown: str) -> None:
    assert markdown_text(text) == shown


def test_control_characters_are_shown_as_codes() -> None:
    assert printable("a\x1b]0;t\x07\r\n\x9b\u2028\ud800é") == "a\\x1b]0;t\\x07\\r\\n\\x9b\\u2028\\ud800é"
    assert printable("a\nb\r", keep="\n") == "a\nb\\r"


@pytest.mark.parametrize(
    "text", ["=1+1", "+x", "-x", "@x", "\tx", "\rx", " =x", "\uff1dx", "'=x", "''=x", "- 5", "=a;b"]
)
def test_no_cell_is_a_formula_and_our_reader_reads_what_was_written(text: str) -> None:
    [[cell, number]] = csv.reader(io.StringIO(csv_text([[text, -0.5]]), newline=""))
    assert cell == f"'{text}"
    assert csv_value(cell) == text
    assert number == "-0.5"


@pytest.mark.parametrize("text", ["normal", "no dr", "'hello", "-5", "+1.5e3", "a;=b", 'a"b', "a,b", "a\n=b", ""])
def test_other_cells_stay_as_they_are(text: str) -> None:
    line = csv_text([[text, "x"]])
    [[cell, _]] = csv.reader(io.StringIO(line, newline=""))
    assert cell == csv_value(cell) == text
    assert ";" not in text or line.startswith('"')  # no column begins behind a semicolon


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (999.6, "1 kB"), (2_500_000_000, "2.5 GB"), (3e30, "3000000 YB")]
)
def test_sizes_have_units(size: float, text: str) -> None:
    assert file_size(size) == text
