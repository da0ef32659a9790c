# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Names that become parts of file names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bundle.class_names import class_names_problem, name_problem, shown


@pytest.mark.parametrize(
    "name",
    [
        "normal",
        "no dr",
        "Gr\u00f6\u00dfe",
        "\u80ba\u7d50\u6838",
        "console",
        "v1.2",
        "(a)",
        "\u0645\u06cc\u200c\u0634",
        "x" * 100,
    ],
)
def test_names_with_spaces_and_letters_of_every_script_are_taken(name: str, tmp_path: Path) -> None:
    assert name_problem(name) is None
    (tmp_path / f"{name}_000000.png").touch()
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}_000000.png"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../../../escaped", "holds /"),
        ("/tmp/escaped", "holds /"),
        ("a\\b", r"holds \\"),
        ("a:b", "holds :"),
        ("what?", r"holds \?"),
        ("a..b", "two dots"),
        (".hidden", "begins with a dot"),
        ("..", "nothing but spaces and dots"),
        (" . ", "nothing but spaces and dots"),
        ("\u00a0", "nothing but spaces and dots"),
        ("", "is empty"),
        ("a\n", r"U\+000A"),
        ("a\x00b", r"U\+0000"),
        ("a\u2028b", r"U\+2028"),
        ("a\u202eb", r"U\+202E"),
        ("\ud800", r"U\+D800"),
        ("CON", "reserved on Windows"),
        ("nul.txt", "reserved on Windows"),
        ("Com1", "reserved on Windows"),
        ("lpt9 ", "reserved on Windows"),
        ("x" * 101, "longer than 100 characters"),
        ("\u80ba" * 80, "longer than .* 200 bytes"),
        (3, "not a text"),
        (None, "not a text"),
        (b"a", "not a text"),
    ],
)
def test_names_that_leave_their_folder_or_are_no_file_names_are_refused(name: Any, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        assert name_problem(name) is None, name_problem(name)
    assert str(class_names_problem(["normal", name])).endswith(str(name_problem(name)))


@pytest.mark.parametrize("twice", [("a", "a"), ("a", "A"), ("Stra\u00dfe", "STRASSE"), ("\u00e9", "e\u0301")])
def test_names_that_file_systems_take_for_the_same_are_refused(twice: tuple[str, str]) -> None:
    assert "are the same to some file systems" in str(class_names_problem(twice))


@pytest.mark.parametrize("twice", [("viral pneumonia", "viral_pneumonia"), ("COVID-19", "COVID 19"), ("tb", "TB.")])
def test_names_that_differ_in_separators_alone_are_refused(twice: tuple[str, str]) -> None:
    assert "differ in spaces or punctuation alone" in str(class_names_problem(twice))
    assert class_names_problem(("HER2+", "HER2-", "-", "!")) is None


@pytest.mark.parametrize("names", ["ab", {"a": 1}, None, [], 3, (), {"a"}])
def test_names_are_a_list(names: Any) -> None:
    assert class_names_problem(names) == "they must be a list of at least one name"


def test_there_are_as_many_names_as_classes() -> None:
    assert class_names_problem(["a", "b"], 2) is None
    assert class_names_problem(("a", "b")) is None
    assert class_names_problem(["a", "b"], 3) == "there are 2, and the number of classes is 3"


def test_what_is_shown_fits_in_a_line() -> None:
    assert shown("a\nb") == r"'a\nb'"
    assert len(shown("x" * 1000)) == 60
