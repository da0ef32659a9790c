# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""One-line messages for failures of the machine (disk, memory, permissions) and interruptions by the user."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import torch

from bundle.markup import printable

__all__ = ["INTERRUPTED", "Terminated", "machine_failure"]

# Exit codes that shells give to commands ended by SIGINT and SIGTERM.
INTERRUPTED, TERMINATED = 130, 143
AGAIN = "Then run the same command again."

# Messages of PyTorch, Pillow and SQLite that replace the system's error number.
_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|bad_alloc|ALLOC_FAILED|Cannot allocate", re.I
)
_SHARED = re.compile(r"unable to (?:write to|open shared memory|mmap).*</?torch_|killed by signal: Bus error", re.S)
_UNWRITTEN = re.compile(
    r"No space left on device|PytorchStreamWriter failed|iostream error|unexpected pos \d+ vs|encoder error -\d"
    r"|database or disk is full"
)
_THREADS = re.compile(r"can't start new thread|Resource temporarily unavailable")

# Messages by errno; {} is the file or folder.
_SYSTEM = {
    errno.EDQUOT: "The disk quota is used up: {} cannot be written. Remove files of yours, or ask for more.",
    errno.EFBIG: "{} would be larger than the file system, or the limit of this session (ulimit -f), allows. Raise the "
    "limit or name another place.",
    errno.EROFS: "{} cannot be written: the file system is read-only. Name another place.",
    errno.EACCES: "{} cannot be opened: no permission. Change its permissions, or name another place.",
    errno.EPERM: "{} cannot be changed: no permission. Change its permissions or owner, or name another place.",
    errno.ENOENT: "{} is not there. If it was removed or renamed meanwhile, leave it in its place while a command "
    "runs.",
    errno.ENAMETOOLONG: "{} is too long a name for this file system, which as a rule takes 255 bytes for a name and "
    "4096 for a path. Choose a shorter one.",
    errno.ENOTDIR: "{} cannot be reached: a part of the path is a file and no folder. Name another place.",
    errno.EISDIR: "{} is a folder, where a file is expected. Move it away.",
    errno.EEXIST: "{} is there already. Move it away.",
    errno.ENOTEMPTY: "{} is there already, and not empty. Move it away.",
    errno.ELOOP: "{} cannot be reached: its symbolic links lead in a circle. Mend them.",
    errno.EMFILE: "{} cannot be opened: too many open files in this session. Raise the limit (ulimit -n).",
    errno.ENFILE: "{} cannot be opened: too many open files on this machine. Close other programs.",
    errno.EIO: "The disk does not read or write {} (input/output error). See the system's log, and copy what is there.",
    errno.ESTALE: "The network share of {} has gone. Connect it again.",
    errno.ENOTCONN: "The network share of {} is not connected. Connect it again.",
    errno.EHOSTDOWN: "The machine that holds {} does not answer. Connect it again.",
    errno.ETIMEDOUT: "The machine that holds {} does not answer. Connect it again.",
    errno.EBUSY: "{} is in use by another program. Close that.",
    errno.ENODEV: "The device that holds {} has gone. Connect it again.",
    errno.ENXIO: "The device that holds {} has gone. Connect it again.",
    errno.EXDEV: "{} cannot be moved to another file system. Name another place.",
}


class Terminated(KeyboardInterrupt):
    """SIGTERM, which schedulers send before they kill a process."""


def machine_failure(error: BaseException) -> tuple[str, int] | None:
    """Describes in one line what failed, where, and how to continue.

    Args:
        error: error that ended the command; the errors that caused it are examined as well.

    Returns:
        The line and the exit code; None if neither the machine nor the user ended the command.
    """
    for cause in chain(error):
        if isinstance(cause, KeyboardInterrupt):
            how, code = ("Terminated", TERMINATED) if isinstance(cause, Terminated) else ("Interrupted", INTERRUPTED)
            return f"{how}. The same command resumes, or starts again where it keeps nothing between.", code
        line = _line(cause)
        if line is not None:
            return f"{printable(line)} {AGAIN}", 1
    return None


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and the errors that caused it, the outermost first."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)


def _line(error: BaseException) -> str | None:
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and "CUDA out of memory" in text):
        return "The GPU's memory is used up. Close other programs on it, take smaller batches, or name --device cpu."
    if is_out_of_memory(error):
        return "The memory is used up. Close other programs, or ask for smaller batches or images."
    if isinstance(error, OSError) and error.errno is not None:
        return _of_system(error)
    if not isinstance(error, RuntimeError | OSError | sqlite3.Error):
        return None
    if _SHARED.search(text):
        return "The shared memory (/dev/shm) is used up, through which processes hand over images. Make it larger."
    if _UNWRITTEN.search(text):
        return "A file cannot be written: the disk is full, or the quota used up. Make room."
    if _THREADS.search(text):
        return "No further thread or process may be started. Close other programs, or raise the limit (ulimit -u)."
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether the memory of a GPU or the machine is used up; PyTorch has no exception type for the latter."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError | OSError | sqlite3.Error) and bool(
        _MEMORY.search(text) and not _SHARED.search(text)
    )


def _of_system(error: OSError) -> str | None:
    place = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else "A file"
    if error.errno == errno.ENOSPC:
        if _inodes_are_used_up(place):
            return f"The disk takes no further files (no inodes left): {place} cannot be written. Remove some files."
        return f"The disk is full: {place} cannot be written. Make room."
    # Errors of networks and other programs have other numbers, or no file.
    pattern = _SYSTEM.get(error.errno or 0)
    return None if pattern is None or (place == "A file" and error.errno == errno.ENOENT) else pattern.format(place)


def _inodes_are_used_up(place: str) -> bool:
    folder = next((folder for folder in Path(place).absolute().parents if folder.is_dir()), None)
    if folder is None or not hasattr(os, "statvfs"):
        return False
    status = os.statvfs(folder)
    return status.f_files > 0 and status.f_favail == 0
