# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
import sqlite3
from types import SimpleNamespace

import pytest
import torch

from bundle import failures
from bundle.failures import Terminated, machine_failure


def of(number: int, name: str | None = "/data/out/pair.pt") -> OSError:
    return OSError(number, os.strerror(number), name)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (of(errno.ENOSPC), "The disk is full: /data/out/pair.pt"),
        (of(errno.EDQUOT), "quota"),
        (of(errno.EFBIG), "ulimit -f"),
        (of(errno.EROFS), "read-only"),
        (of(errno.EACCES), "no permission"),
        (of(errno.EPERM), "no permission"),
        (of(errno.ENOENT), "/data/out/pair.pt is not there"),
        (of(errno.ENAMETOOLONG), "too long a name"),
        (of(errno.EMFILE), "ulimit -n"),
        (of(errno.EIO), "input/output error"),
        (of(errno.ESTALE), "network share"),
        (of(errno.ENOTDIR), "is a file and no folder"),
        (of(errno.ENOTEMPTY), "not empty"),
        (of(errno.ENOMEM), "memory is used up"),
        (of(errno.ENOSPC, None), "The disk is full: A file"),
        (MemoryError(), "memory is used up"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"), "memory is used up"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), "GPU's memory is used up"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), "memory is used up"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"), "the disk is full"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "the disk is full"),
        (RuntimeError("basic_ios::clear: iostream error"), "the disk is full"),
        (OSError("encoder error -2 when writing image file"), "the disk is full"),
        (sqlite3.OperationalError("database or disk is full"), "the disk is full"),
        (RuntimeError("unable to write to file </torch_12_34>: No space left on device (28)"), "/dev/shm"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."), "/dev/shm"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
    ],
)
def test_each_kind_is_one_line_with_a_cure_though_monai_wraps_it(error: BaseException, words: str) -> None:
    wrapped = RuntimeError("Failed to evaluate '$@evaluator.run()'")
    wrapped.__cause__ = error
    for shown in (error, wrapped):
        failure = machine_failure(shown)
        assert failure is not None
        line, code = failure
        assert code == 1
        assert words in line
        assert "\n" not in line
        assert line.endswith("Then run the same command again.")


def test_no_inodes_are_told_from_no_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures.os, "statvfs", lambda folder: SimpleNamespace(f_files=10, f_favail=0))
    failure = machine_failure(of(errno.ENOSPC))
    assert failure is not None
    assert "no inodes left" in failure[0]


def test_whoever_stops_a_command_reads_how_to_continue() -> None:
    for error, code, word in ((KeyboardInterrupt(), 130, "Interrupted"), (Terminated(), 143, "Terminated")):
        failure = machine_failure(error)
        assert failure is not None
        assert failure[1] == code
        assert failure[0].startswith(f"{word}. The same command resumes")


@pytest.mark.parametrize(
    "error", [ValueError("No space left on device"), RuntimeError("shapes differ"), OSError("odd")]
)
def test_what_nobody_foresaw_keeps_its_traceback(error: Exception) -> None:
    assert machine_failure(error) is None


def test_names_cannot_move_the_cursor() -> None:
    failure = machine_failure(of(errno.ENOENT, "/data/\x1b[2J.png"))
    assert failure is not None
    assert "\x1b" not in failure[0]
    assert "/data/\\x1b[2J.png" in failure[0]
