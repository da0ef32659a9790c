# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""One run of a command at a time in one output folder: two would overwrite each other's work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ignite.distributed as idist
from filelock import FileLock, Timeout

from bundle.files import private_folder

__all__ = ["InUseError", "run_lock"]


class InUseError(RuntimeError):
    """Another run works in the folder; the message names it and the cure."""


@contextmanager
def run_lock(output_dir: str | os.PathLike[str], file: str | os.PathLike[str]) -> Iterator[None]:
    """Holds a lock for all processes of a run.

    The system lets go of it when the first process ends, however it does.

    Args:
        output_dir: the folder that the run works in, for the message.
        file: the lock; runs that share nothing have different ones. Its folder is made for the owner alone.

    Raises:
        InUseError: another run holds it; in the first process.
        SystemExit: in the others, which need not say the same.
    """
    lock, refusal = None, ""
    if idist.get_rank() == 0:
        lock = FileLock(private_folder(Path(file).parent) / Path(file).name, mode=0o600)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            refusal = (
                f"{output_dir} is in use: another run works there ({Path(file).name}). Wait until it has ended and "
                f"run the same command again, or name another output_dir."
            )
    refused = bool(idist.broadcast(float(bool(refusal))))
    if refused and lock is not None:
        raise InUseError(refusal)
    if refused:
        raise SystemExit(1)
    try:
        yield
        idist.barrier()
    finally:
        if lock is not None:
            lock.release()
