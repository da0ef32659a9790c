# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from bundle.data import DataError, Problem


def test_one_problem_is_one_line() -> None:
    error = DataError(Problem("a.png", "blank", "all black", "Remove it"))
    assert str(error) == "a.png: all black. Remove it."
    assert [problem.kind for problem in error.problems] == ["blank"]


def test_many_problems_are_sorted_and_cut() -> None:
    error = DataError([Problem(f"{i:03d}.png", "blank", "all black", "Remove it") for i in reversed(range(30))])
    lines = str(error).splitlines()
    assert lines[1].startswith("000.png")
    assert "10 more" in lines[-1]
    assert "check_data" in lines[-1]
    assert len(error.problems) == 30
