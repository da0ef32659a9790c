# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a data set, in a form that can be listed, counted and shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["DataError", "Problem"]


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong with a data set.

    Attributes:
        name: the image it is about, as a path relative to the data set's folder; the folder or CSV itself for problems
            that belong to no single image.
        kind: short name of the sort of problem, for counting (for example ``"truncated"``).
        message: what is wrong.
        cure: what the user can do about it.
    """

    name: str
    kind: str
    message: str
    cure: str

    def __str__(self) -> str:
        return f"{self.name}: {self.message}. {self.cure}."


class DataError(ValueError):
    """A data set that cannot be used as it is.

    Args:
        problems: one or more problems; or a plain message when there is nothing to list.
        all_of_them: where problems beyond the first `shown` can be read.

    Attributes:
        problems: the problems, empty for a plain message.
    """

    shown = 20

    def __init__(
        self,
        problems: Problem | Sequence[Problem] | str,
        all_of_them: str = "the run id check_data of configs/check_data.json lists them all",
    ) -> None:
        if isinstance(problems, Problem):
            problems = [problems]
        if isinstance(problems, str):
            self.problems: list[Problem] = []
            super().__init__(problems)
            return
        self.problems = sorted(problems)
        lines = [str(problem) for problem in self.problems[: self.shown]]
        if len(self.problems) > self.shown:
            lines.append(f"... and {len(self.problems) - self.shown} more; {all_of_them}.")
        super().__init__("\n".join(lines) if len(lines) == 1 else "\n".join(["The data cannot be used:", *lines]))
