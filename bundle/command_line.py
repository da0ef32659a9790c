# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""How a command ends where something is wrong: one line that names the cure, and an exit code."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import NoReturn

from bundle.failures import Terminated, machine_failure
from bundle.markup import printable

__all__ = ["is_command_line", "own_error", "plain_errors", "print_error", "show_errors_plainly"]


def is_command_line() -> bool:
    """Whether ``python -m monai.bundle`` is running, and not somebody's own program."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name == "monai.bundle.__main__"


def show_errors_plainly() -> None:
    """Lets the process end in one line of message, without a traceback, where the bundle can say what is wrong.

    The exit code is 1; 130 after Ctrl-C and 143 after SIGTERM, with the way to resume. The traceback is kept for what
    nobody foresaw.
    """
    sys.excepthook = _show_cure
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of few letters is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    logging.getLogger("ignite.engine").setLevel(logging.CRITICAL)  # else it reports, in its words, what we show
    # PyTorch's launcher ends processes that wait for each other by this signal; they would hear of it too late.
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if alone and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)


@contextmanager
def plain_errors(*foreseen: type[Exception]) -> Iterator[None]:
    """Ends a command with the message alone of an error that is the bundle's own, the machine's or the user's.

    Args:
        foreseen: further types whose message is enough.

    Raises:
        SystemExit: in the place of such an error, with the exit code that `show_errors_plainly` names. Others pass as
            they are, for the sake of their traceback.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        shown = (str(error), 1) if isinstance(error, foreseen) else _plain(error)
        if shown is None:
            raise
        print_error(shown[0])
        raise SystemExit(shown[1]) from error


def print_error(message: str) -> None:
    """Writes a message to stderr, with what a terminal would obey made visible."""
    print(f"error: {printable(message, keep=chr(10))}", file=sys.stderr)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _show_cure(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    shown = _plain(error)
    if shown is None:
        sys.__excepthook__(kind, error, traceback)
        return
    print_error(shown[0])
    if shown[1] != 1:
        raise SystemExit(shown[1])


def _plain(error: BaseException) -> tuple[str, int] | None:
    """Message and exit code of an error whose traceback says no more to a user."""
    own = own_error(error)
    return machine_failure(error) if own is None else (str(own), 1)


def own_error(error: BaseException) -> BaseException | None:
    """Returns the bundle's own error among those that one was raised from; None if there is none.

    MONAI wraps whatever an expression or a component raises in RuntimeErrors.
    """
    cause: BaseException | None = error
    while cause is not None and not (
        type(cause).__module__.startswith(f"{__package__}.") and isinstance(cause, Exception)
    ):
        cause = cause.__cause__
    return cause
