# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import pytest

from bundle.pacs.patience import Patience
from bundle.pacs.server import RefusedError, UnavailableError


def failing(*failures: Exception) -> Callable[[], str]:
    """A request that fails so often, and is answered then."""
    remaining = list(failures)

    def request() -> str:
        if remaining:
            raise remaining.pop(0)
        return "answer"

    return request


def away(number: int) -> list[UnavailableError]:
    return [UnavailableError("away")] * number


def test_what_fails_for_a_while_is_repeated_after_longer_and_longer_pauses(pauses: list[float]) -> None:
    patience = Patience(9)
    told: list[str] = []
    patience.tell = told.append
    assert patience(failing()) == "answer"
    assert (pauses, told) == ([], [])
    assert patience(failing(*away(8))) == "answer"
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert told[:2] == ["away; next attempt in 1 s", "away; next attempt in 2 s"]
    assert told[-1] == ""


def test_attempts_are_counted(pauses: list[float]) -> None:
    patience = Patience(2)
    patience(failing())
    with pytest.raises(UnavailableError):
        patience(failing(*away(3)))
    assert pauses == [1, 2]


@pytest.mark.parametrize(("retries", "pauses_made"), [(5, [1]), (0, [])])
def test_server_that_has_never_answered_is_tried_twice_at_most(
    pauses: list[float], retries: int, pauses_made: list[float]
) -> None:
    with pytest.raises(UnavailableError):
        Patience(retries)(failing(*away(9)))
    assert pauses == pauses_made


def test_refusal_is_an_answer_and_is_not_repeated(pauses: list[float]) -> None:
    patience = Patience(2)
    with pytest.raises(RefusedError):
        patience(failing(RefusedError("no")))
    assert patience(failing(*away(2))) == "answer"
    assert pauses == [1, 2]
