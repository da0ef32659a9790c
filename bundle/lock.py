# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Locks that allow one run of a command at a time in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import ignite.distributed as idist
from filelock import FileLock, Timeout, lock_descriptor

from bundle.files import private_folder

__all__ = ["InUseError", "folder_lock", "run_lock"]


class InUseError(RuntimeError):
    """Another run uses the folder; the message names it and the remedy."""


@contextmanager
def run_lock(output_dir: str | os.PathLike[str], file: str | os.PathLike[str]) -> Iterator[None]:
    """Holds a lock for all processes of a run, which the system releases when the first process ends for any reason.

    Args:
        output_dir: folder of the run, for the message.
        file: lock file; its folder is created as private.

    Raises:
        InUseError: another run holds the lock; raised in the first process.
        SystemExit: raised in the other processes in that case, to print the message only once.
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


@contextmanager
def folder_lock(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Holds a lock on a folder itself, which adds no file to it; does nothing where the system cannot lock folders.

    Args:
        folder: existing folder.

    Raises:
        InUseError: another process holds the lock.
        OSError: the folder cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY) if os.name == "posix" else None
    try:
        is_free = True
        if descriptor is not None:
            with suppress(OSError):  # some network shares lock no folders
                is_free = lock_descriptor(descriptor, blocking=False)
        if not is_free:
            raise InUseError(
                f"{folder} is in use: another run adds files to it. Wait until it has ended, and run the same command "
                f"again."
            )
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
