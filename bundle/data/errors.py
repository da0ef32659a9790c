# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Problems of a data set, and the error that lists them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bundle.markup import printable

__all__ = ["DataError", "Problem", "by_kind"]


@dataclass(frozen=True, order=True)
class Problem:
    """One problem of a data set.

    Attributes:
        name: name of the affected image, as a path relative to the data set's folder; or the name of a folder, CSV or
            class. Bytes and control characters that cannot be printed are escaped, here and in message and cure.
        kind: short name of the category, for counting (for example ``"truncated"``).
        message: description of the problem.
        cure: advice on how to solve it.
    """

    name: str
    kind: str
    message: str
    cure: str

    def __post_init__(self) -> None:
        for field in ("name", "message", "cure"):
            object.__setattr__(self, field, printable(getattr(self, field), keep="\n"))

    def __str__(self) -> str:
        return f"{self.name}: {self.message}. {self.cure}."


def by_kind(problems: Iterable[Problem]) -> dict[str, list[Problem]]:
    """Groups problems by kind, each group sorted; the kind with most problems comes first."""
    groups: dict[str, list[Problem]] = {}
    for problem in sorted(problems):
        groups.setdefault(problem.kind, []).append(problem)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


class DataError(ValueError):
    """A data set that cannot be used as it is.

    Args:
        problems: one or more problems, or a plain message.
        all_of_them: hint where all problems are listed, for kinds with more than the `shown` ones in the message.

    Attributes:
        problems: the problems, sorted; empty for a plain message.
    """

    shown = 3

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
        lines: list[str] = []
        for kind, group in by_kind(self.problems).items():
            lines += map(str, group[: self.shown])
            if len(group) > self.shown:
                lines.append(f"... and {len(group) - self.shown} more of this kind ({kind}); {all_of_them}.")
        super().__init__("\n".join(lines) if len(lines) == 1 else "\n".join(["The data cannot be used:", *lines]))
