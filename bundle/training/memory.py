# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Trainings that do not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bundle.failures import is_out_of_memory

__all__ = ["TooLittleMemory", "tell_of_memory"]


class TooLittleMemory(RuntimeError):
    """A training that needs more memory than there is; the message tells the cure."""


@contextmanager
def tell_of_memory(what: str) -> Iterator[None]:
    """Turns the errors with which memory runs out, on GPU and CPU, into one that tells the cure.

    Args:
        what: what is trained, for the message.

    Raises:
        TooLittleMemory: in the place of such an error. Others pass as they are.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TooLittleMemory(
            f"The training of {what} ran out of memory. Give a smaller batch_size or resolution, or another device."
        ) from error
