# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""End of a failing command: a message that names the remedy, and an exit code."""

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
    """Returns whether ``python -m monai.bundle`` is running, rather than another program."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name == "monai.bundle.__main__"


def show_errors_plainly() -> None:
    """Makes the process report known errors in one line without a traceback.

    The exit code is 1, or 130 after Ctrl-C and 143 after SIGTERM, with a hint how to resume. Unexpected errors keep
    their traceback.
    """
    sys.excepthook = _show_cure
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # terminals with a limited character set must not cause errors
            stream.reconfigure(errors="backslashreplace")
    logging.getLogger("ignite.engine").setLevel(logging.CRITICAL)  # otherwise it reports the same error again
    # PyTorch's launcher sends SIGTERM to processes that wait for each other and would handle it too late.
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if alone and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)


@contextmanager
def plain_errors(*foreseen: type[Exception]) -> Iterator[None]:
    """Context that ends a command with only the message of an error of the bundle, the machine or the user.

    Args:
        foreseen: further exception types to report by their message.

    Raises:
        SystemExit: instead of such an error, with the exit code of `show_errors_plainly`. Other errors pass unchanged,
            with their traceback.
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
    """Writes a message to stderr, with control characters made visible."""
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
    """Returns message and exit code of an error whose traceback would not help a user, or None."""
    own = own_error(error)
    return machine_failure(error) if own is None else (str(own), 1)


def own_error(error: BaseException) -> BaseException | None:
    """Returns the bundle's own error in the chain of causes of an error, or None.

    MONAI wraps errors of expressions and components in RuntimeErrors.
    """
    cause: BaseException | None = error
    while cause is not None and not (
        type(cause).__module__.startswith(f"{__package__}.") and isinstance(cause, Exception)
    ):
        cause = cause.__cause__
    return cause
