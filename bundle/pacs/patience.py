# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Repeated attempts at what fails because a server does not answer."""

from __future__ import annotations

from collections.abc import Callable
from time import sleep
from typing import TypeVar

from bundle.pacs.server import PacsError, UnavailableError

__all__ = ["Patience"]

Result = TypeVar("Result")

# Longest pause between two attempts, in seconds; the first is 1 s, and each is twice as long as the one before.
LONGEST_PAUSE_S = 60


class Patience:
    """Repeats a request that the server does not answer, after pauses that double.

    Args:
        retries: number of further attempts. Before the server has answered for the first time there is one at most: a
            wrong address is then more likely than an interruption.

    Attributes:
        tell: takes the reason of a pause, and "" once there was an answer.
    """

    def __init__(self, retries: int) -> None:
        self.retries = retries
        self.tell: Callable[[str], None] = lambda text: None
        self._has_answered = False

    def __call__(self, request: Callable[[], Result]) -> Result:
        """Returns the result of a request.

        Raises:
            UnavailableError: the last attempt failed.
        """
        attempt = 0
        while True:
            try:
                result = request()
            except UnavailableError as error:
                if attempt >= (self.retries if self._has_answered else min(self.retries, 1)):
                    raise
                self.pause(attempt, str(error))
                attempt += 1
            except PacsError:
                self._has_answered = True
                raise
            else:
                self._has_answered = True
                if attempt:
                    self.tell("")
                return result

    def pause(self, number: int, reason: str) -> None:
        """Waits for another attempt.

        Args:
            number: number of attempts before that have been repeated as well.
            reason: what has failed.
        """
        seconds = min(2**number, LONGEST_PAUSE_S)
        self.tell(f"{reason}; next attempt in {seconds} s")
        sleep(seconds)
