# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Atomic writing of files and folders, access rights of private files, checksums."""

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
    "bundle_version",
    "content_digest",
    "flush_folder",
    "json_text",
    "load_tensors",
    "private_folder",
    "save_tensors",
    "sha256_file",
    "sweep_temporary",
    "temporary_folder",
    "write_json",
    "write_text",
]

logger = logging.getLogger(__name__)

PRIVATE = "private"
# Names of temporary files consist of the target's name, the machine's hash and mkstemp's random part.
_MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
_TEMPORARY = re.compile(r"\..+?-(?:(?P<machine>[0-9a-f]{6})-)?[a-z0-9_]{8}\.tmp(?:\..+)?", re.DOTALL)
# Age after which temporary files of another machine, whose locks may be invisible here, count as abandoned.
ABANDONED_AFTER_S = 86400.0
# Errors of file systems that do not support fsync of folders, or locks.
_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.ENOLCK, errno.EACCES, errno.EISDIR)


class DamagedError(RuntimeError):
    """A file whose content was damaged; the message names the file and the remedy."""


def bundle_version() -> str:
    """Returns the version of the bundle, from the metadata.json beside the package."""
    metadata = Path(__file__).resolve().parent.parent / "metadata.json"
    return str(json.loads(metadata.read_text(encoding="utf-8"))["version"]) if metadata.exists() else "unknown"


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` that is renamed to it only if the block succeeds.

    The content is flushed to disk before the rename, so that a power failure leaves either the old or the new file.
    Files in a private folder (see `private_folder`) are readable by their owner alone.

    Args:
        path: file to write; missing parent folders are created.

    Yields:
        Path of an empty file in the same folder (so that the rename is atomic), with the same suffix.

    Raises:
        OSError: the file cannot be written; ``filename`` is ``path``, even if the disk is full.
    """
    target = Path(path)
    with _naming(target):
        _make_parents(target)
        descriptor, name = _temporary_file(target)
        temporary = Path(name)
        try:
            yield temporary
            # mkstemp creates files that only their owner can read; the result should obey the umask like other files.
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
    """Yields a new temporary folder beside ``path`` that is renamed to it only if the block succeeds.

    Temporary folders left by killed processes are removed first; those of live processes stay.

    Args:
        path: folder to create; it must not exist or be an empty folder.

    Yields:
        Path of an empty folder, whose content is flushed to disk before the rename.

    Raises:
        OSError: the folder cannot be created.
    """
    target = Path(path)
    with temporary_folder(target) as temporary:
        yield temporary
        temporary.chmod(_mode(0o777, target.parent))
        flush_folder(temporary)
        temporary.replace(target)
        _flush(target.parent)


@contextmanager
def temporary_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a new temporary folder beside ``path``, which is removed afterwards.

    Temporary folders left by killed processes are removed first; those of live processes stay.

    Args:
        path: file or folder that the content is for; missing parent folders are created.

    Yields:
        Path of an empty folder on the same file system as ``path``, as a rule.

    Raises:
        OSError: the folder cannot be created; ``filename`` is ``path``, even if the disk is full.
    """
    target = Path(path)
    with _naming(target):
        _make_parents(target)
        # Neighbours may have similar names: only those of mkdtemp below are removed.
        own = re.compile(rf"\.{re.escape(target.name)}-[a-z0-9_]{{8}}\.tmp")
        for entry in target.parent.iterdir():
            if own.fullmatch(entry.name) and entry.is_dir() and _is_locked(entry) is not True:
                shutil.rmtree(entry)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".tmp", dir=target.parent))
        descriptor = _lock(temporary)
        try:
            yield temporary
        finally:
            if descriptor is not None:
                os.close(descriptor)
            shutil.rmtree(temporary, ignore_errors=True)


def flush_folder(path: Path) -> None:
    """Waits until the content of a folder, at any depth, is on disk."""
    for folder, _, names in os.walk(path):
        for name in names:
            _flush(Path(folder, name))
        _flush(Path(folder))


def sweep_temporary(folder: Path) -> None:
    """Removes temporary files that `atomic_write` left in a folder when its process was killed.

    A live process holds a lock on its temporary file, which the system releases when the process ends for any reason.
    Files from another machine, whose locks may be invisible here, are removed when they are a day old.

    Args:
        folder: folder to search, without subfolders; it need not exist.
    """
    for path in folder.glob(".*.tmp*"):
        match = _TEMPORARY.fullmatch(path.name)
        with suppress(FileNotFoundError):  # another process may remove it at the same time
            status = path.lstat()
            if match is None or not stat.S_ISREG(status.st_mode):
                continue
            locked = _is_locked(path)
            old = time.time() - status.st_mtime > ABANDONED_AFTER_S
            if locked is not True and (old or (locked is False and match["machine"] == _MACHINE)):
                path.unlink()


def private_folder(path: str | os.PathLike[str]) -> Path:
    """Creates a folder that only its owner can read, whatever the umask; existing content becomes private too.

    `atomic_write` gives the same access rights to files and folders inside a private folder named ``private``.

    Args:
        path: folder to create; missing parent folders are created.

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
            continue  # removed by another process
        except PermissionError:
            logger.warning("%s belongs to another user, who decides who may read it.", entry)
    return folder


def save_tensors(path: str | os.PathLike[str], content: Any) -> None:
    """Writes tensors, alone or in dictionaries, in the format of torch.load; equal content gives equal bytes.

    Args:
        path: file to write.
        content: content that torch.load can read with ``weights_only=True``.

    Raises:
        OSError: the disk is full or the file cannot be written.
    """
    # Given a path, torch.save writes its temporary name into the file and reports a full disk as "iostream error".
    with atomic_write(path) as temporary, open(temporary, "wb") as stream:
        try:
            torch.save(content, stream)
        except RuntimeError as error:
            # After a failed write, PyTorch reports an unexpected position instead.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_tensors(path: str | os.PathLike[str]) -> Any:
    """Reads a file of `save_tensors` on the CPU and verifies its checksums, which PyTorch itself ignores.

    Args:
        path: file to read.

    Raises:
        DamagedError: the file has another format or was damaged.
        OSError: the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if part := archive.testzip():
                raise zipfile.BadZipFile(f"the checksum of {part} does not fit")
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch.load raises many types on damaged files
        raise DamagedError(f"{path} is damaged. Remove it and run the same command again.") from error


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_digest(content: Any, length: int = 16) -> str:
    """Returns the first hexadecimal digits of the SHA-256 of plain content's JSON, independent of the order of keys."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def json_text(content: Any) -> str:
    """Returns ``content`` as JSON with sorted keys, so that equal content gives equal text."""
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes ``content`` as JSON with sorted keys, so that equal content gives equal bytes."""
    write_text(path, json_text(content))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes text as UTF-8, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Sets the file name of errors that name no file (full disk) or a temporary one to the target."""
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
    """Returns the access rights of a new file or folder inside ``folder``."""
    umask = os.umask(0)
    os.umask(umask)
    return mode & (0o700 if _is_private(folder) else 0o777) & ~umask


def _temporary_file(target: Path) -> tuple[int, str]:
    """Creates a temporary file beside the target that is locked while its descriptor is open."""
    # The target's name may already have the maximum length.
    prefix = f".{target.stem.encode()[:64].decode(errors='ignore')}-{_MACHINE}-"
    while True:
        descriptor, name = tempfile.mkstemp(prefix=prefix, suffix=f".tmp{target.suffix}", dir=target.parent)
        if os.name != "posix":  # Windows locks would prevent writing
            return descriptor, name
        try:
            if lock_descriptor(descriptor, blocking=False) and os.fstat(descriptor).st_nlink:
                return descriptor, name
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return descriptor, name
            raise
        os.close(descriptor)  # removed by another process before it was locked


def _lock(path: Path) -> int | None:
    """Locks a folder until the descriptor is closed; returns None if the system does not support it."""
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
    """Returns whether a live process holds a file or folder, or None if the system cannot tell."""
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
    """Waits until a file's content, or a folder's list of names, is on disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    except PermissionError:  # some systems cannot open folders
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)
