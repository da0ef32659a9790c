# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from bundle.data import DataError, Problem


def test_one_problem_is_one_line() -> None:
    error = DataError(Problem("a.png", "blank", "all black", "Remove it"))
    assert str(error) == "a.png: all black. Remove it."
    assert [problem.kind for problem in error.problems] == ["blank"]


def test_many_problems_of_a_kind_are_sorted_and_cut() -> None:
    problems = [Problem(f"{i:03d}.png", "blank", "all black", "Remove it") for i in reversed(range(30))]
    error = DataError([Problem("000.png", "absent", "is not there", "Restore it"), *problems])
    lines = str(error).splitlines()
    assert [line[:8] for line in lines[1:5]] == ["000.png:", "001.png:", "002.png:", "... and "]
    assert "27 more of this kind (blank)" in lines[4]
    assert "check_data" in lines[4]
    assert lines[5:] == ["000.png: is not there. Restore it."]
    assert len(error.problems) == 31


def test_names_that_a_terminal_would_obey_or_cannot_show_are_escaped() -> None:
    problem = Problem("a\x1b[2J\udce9.png", "file name", "is called \x07 and é", "Rename it")
    assert str(problem) == "a\\x1b[2J\\xe9.png: is called \\x07 and é. Rename it."
