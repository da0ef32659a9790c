# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Writing files so that a reader never meets half of one, and keeping private ones private."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import stat
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import lock_descriptor

__all__ = [
    "DamagedError",
    "atomic_folder",
    "atomic_write",
    "content_digest",
    "json_text",
    "load_tensors",
    "private_folder",
    "save_tensors",
    "sha256_file",
    "sweep_temporary",
    "write_json",
]

logger = logging.getLogger(__name__)

PRIVATE = "private"
# Names of temporary files: the target's, the machine, and what mkstemp makes up.
_MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
_TEMPORARY = re.compile(r"\..+?-(?:(?P<machine>[0-9a-f]{6})-)?[a-z0-9_]{8}\.tmp(?:\..+)?", re.DOTALL)
# Locks of another machine may be invisible from here; nothing is written for longer than this.
ABANDONED_AFTER_S = 86400.0
# What file systems answer that know no fsync of folders, or no locks.
_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.ENOLCK, errno.EACCES, errno.EISDIR)


class DamagedError(RuntimeError):
    """A file does not hold what was written into it; the message names it and the cure."""


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside ``path``, which takes its name only if the block succeeds.

    The content is on the disk before the name is: a power cut leaves the old file or the new one. What is written into
    a private folder (see `private_folder`) can be read by its owner alone.

    Args:
        path: the file to write; missing parent folders are made.

    Yields:
        A path in the same folder (so that the rename is atomic), with the same suffix; an empty file until the block
        fills it.

    Raises:
        OSError: the file cannot be written; its ``filename`` is ``path`` also where the disk is full.
    """
    target = Path(path)
    with _naming(target):
        _make_parents(target)
        descriptor, name = _temporary_file(target)
        temporary = Path(name)
        try:
            yield temporary
            # mkstemp makes files that only their owner can read; the result obeys the umask like any other file.
            temporary.chmod(_mode(0o666, target.parent))
            _flush(temporary)
            temporary.replace(target)
            _flush(target.parent)
        finally:
            os.close(descriptor)
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a new temporary folder beside ``path``, which takes its name only if the block succeeds.

    Folders that a killed process left under such names are removed first, and those of live ones stay.

    Args:
        path: the folder to make; there must be nothing under that name, or an empty folder.

    Yields:
        The path of an empty folder. All that the block leaves in it is on the disk before it takes its name.

    Raises:
        OSError: it cannot be made.
    """
    target = Path(path)
    with _naming(target):
        _make_parents(target)
        for left_behind in target.parent.glob(f".{target.name}-*"):
            if _is_locked(left_behind) is not True:
                shutil.rmtree(left_behind)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".tmp", dir=target.parent))
        descriptor = _lock(temporary)
        try:
            yield temporary
            temporary.chmod(_mode(0o777, target.parent))
            for folder, _, names in os.walk(temporary):
                for name in names:
                    _flush(Path(folder, name))
                _flush(Path(folder))
            temporary.replace(target)
            _flush(target.parent)
        finally:
            if descriptor is not None:
                os.close(descriptor)
            shutil.rmtree(temporary, ignore_errors=True)


def sweep_temporary(folder: Path) -> None:
    """Removes the temporary files that `atomic_write` left in a folder when its process was killed.

    A live process holds a lock on its temporary file, which the system lets go of when the process ends, however it
    does. Files that were begun on another machine, whose locks may not be seen from here, go when they are a day old.

    Args:
        folder: looked through itself, not its subfolders; it may be absent.
    """
    for path in folder.glob(".*.tmp*"):
        match = _TEMPORARY.fullmatch(path.name)
        with suppress(FileNotFoundError):  # another process sweeps as well
            status = path.lstat()
            if match is None or not stat.S_ISREG(status.st_mode):
                continue
            locked = _is_locked(path)
            old = time.time() - status.st_mtime > ABANDONED_AFTER_S
            if locked is not True and (old or (locked is False and match["machine"] == _MACHINE)):
                path.unlink()


def private_folder(path: str | os.PathLike[str]) -> Path:
    """Makes a folder that its owner alone can read, whatever the umask; files already in it become as private.

    `atomic_write` gives files and folders below one that is called ``private`` the same permissions.

    Args:
        path: the folder; missing parents are made.

    Returns:
        The path.
    """
    folder = Path(path)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for entry in (folder, *folder.rglob("*")):
        try:
            mode = entry.stat().st_mode if entry == folder else entry.lstat().st_mode
            if not stat.S_ISLNK(mode) and mode & 0o077:
                entry.chmod(stat.S_IMODE(mode) & 0o700)
        except FileNotFoundError:
            continue  # a temporary file of another process
        except PermissionError:
            logger.warning("%s belongs to another user, who decides who may read it.", entry)
    return folder


def save_tensors(path: str | os.PathLike[str], content: Any) -> None:
    """Writes tensors, alone or in dictionaries, as torch.load reads them; equal content gives equal bytes.

    Args:
        path: the file.
        content: what torch.load returns with ``weights_only=True``.

    Raises:
        OSError: the disk is full or the file cannot be written.
    """
    # Given a path, torch.save writes the temporary name into the file, and says of a full disk "iostream error".
    with atomic_write(path) as temporary, open(temporary, "wb") as stream:
        try:
            torch.save(content, stream)
        except RuntimeError as error:
            # Of a write that failed, PyTorch reports a position that it did not expect.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_tensors(path: str | os.PathLike[str]) -> Any:
    """Reads what `save_tensors` has written, on the CPU, and compares it with the checksums in the file.

    PyTorch does not look at these: it reads damaged numbers as if they were right.

    Args:
        path: the file.

    Raises:
        DamagedError: the file is no such file, or was damaged.
        OSError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if part := archive.testzip():
                raise zipfile.BadZipFile(f"the checksum of {part} does not fit")
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch.load raises as many types as there are ways to damage a file
        raise DamagedError(f"{path} is damaged. Remove it and run the same command again.") from error


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_digest(content: Any, length: int = 16) -> str:
    """Names plain content: the first hexadecimal digits of the SHA-256 of its JSON, whatever the order of its keys."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def json_text(content: Any) -> str:
    """Writes ``content`` as JSON with sorted keys, so that equal content gives equal text."""
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes ``content`` as JSON with sorted keys, so that equal content gives equal bytes."""
    with atomic_write(path) as temporary:
        temporary.write_text(json_text(content), encoding="utf-8")


@contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Gives errors that name no file, as those of a full disk, or a temporary one the name of the target."""
    try:
        yield
    except OSError as error:
        parts = [] if error.filename is None else Path(os.fsdecode(error.filename)).parts
        if error.errno is not None and (not parts or any(map(_TEMPORARY.fullmatch, parts))):
            error.filename = str(target)
        raise


def _make_parents(target: Path) -> None:
    if not target.parent.is_dir():
        missing = [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            if _is_private(folder.parent):
                folder.chmod(0o700)


def _is_private(folder: Path) -> bool:
    return any(
        parent.name == PRIVATE and not parent.stat().st_mode & 0o077 for parent in (folder, *folder.absolute().parents)
    )


def _mode(mode: int, folder: Path) -> int:
    """Permissions of something new in a folder."""
    umask = os.umask(0)
    os.umask(umask)
    return mode & (0o700 if _is_private(folder) else 0o777) & ~umask


def _temporary_file(target: Path) -> tuple[int, str]:
    """Makes a temporary file beside the target that is locked while its descriptor is open."""
    # The target's name may be as long as the file system allows.
    prefix = f".{target.stem.encode()[:64].decode(errors='ignore')}-{_MACHINE}-"
    while True:
        descriptor, name = tempfile.mkstemp(prefix=prefix, suffix=f".tmp{target.suffix}", dir=target.parent)
        if os.name != "posix":  # there, a lock would keep the block from writing
            return descriptor, name
        try:
            if lock_descriptor(descriptor, blocking=False) and os.fstat(descriptor).st_nlink:
                return descriptor, name
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return descriptor, name
            raise
        os.close(descriptor)  # swept before it was locked


def _lock(path: Path) -> int | None:
    """Locks a folder until the descriptor is closed; None where the system cannot."""
    descriptor = None
    try:
        descriptor = os.open(path, os.O_RDONLY)
        if lock_descriptor(descriptor, blocking=False):
            return descriptor
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    if descriptor is not None:
        os.close(descriptor)
    return None


def _is_locked(path: Path) -> bool | None:
    """Whether a live process holds a file or folder; None where the system cannot tell."""
    if os.name != "posix":
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return not lock_descriptor(descriptor, blocking=False)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _flush(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    except PermissionError:  # of a system that opens no folders
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)
