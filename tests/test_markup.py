# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from bundle.files import content_digest
from bundle.markup import markdown_table, three_digits, write_html


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
