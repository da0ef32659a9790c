# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Error of trainings that run out of memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bundle.failures import is_out_of_memory

__all__ = ["TooLittleMemory", "tell_of_memory"]


class TooLittleMemory(RuntimeError):
    """A training that needs more memory than available; the message names the remedy."""


@contextmanager
def tell_of_memory(what: str) -> Iterator[None]:
    """Converts out-of-memory errors of GPU and CPU into one whose message names the remedy.

    Args:
        what: name of the trained network, for the message.

    Raises:
        TooLittleMemory: the block ran out of memory. Other errors pass unchanged.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TooLittleMemory(
            f"The training of {what} ran out of memory. Give a smaller batch_size or resolution, or another device."
        ) from error
