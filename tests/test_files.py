# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from bundle import files
from bundle.files import (
    atomic_folder,
    atomic_write,
    private_folder,
    save_tensors,
    sweep_temporary,
    temporary_folder,
    write_json,
)
from tests.conftest import ROOT


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def killed(tmp_path: Path, code: str) -> list[str]:
    """What a process leaves in the folder that is killed in the midst of writing."""
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    program = f"import os, signal, sys\nfrom pathlib import Path\nfrom bundle.files import *\n{code}\n    {kill}\n"
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    return sorted(path.name for path in tmp_path.iterdir())


def test_what_a_killed_process_left_is_swept_and_nothing_of_a_live_one(tmp_path: Path) -> None:
    [left] = killed(tmp_path, "with atomic_write(Path(sys.argv[1]) / 'a.json') as t:\n    t.write_text('half')")
    assert left.startswith(".a-")
    assert ".tmp" in left
    for foreign in (".bashrc", ".notes.tmp", "a-5bce98-aaaaaaaa.tmp.json"):
        (tmp_path / foreign).touch()
    with atomic_write(tmp_path / "b.json") as live:
        live.write_text("whole")
        sweep_temporary(tmp_path)
        assert live.exists()
        assert not (tmp_path / left).exists()
    assert {path.name for path in tmp_path.iterdir()} == {
        ".bashrc",
        ".notes.tmp",
        "a-5bce98-aaaaaaaa.tmp.json",
        "b.json",
    }
    sweep_temporary(tmp_path / "absent")


@pytest.mark.parametrize("locks", [True, False])
def test_files_of_another_machine_and_systems_without_locks_are_swept_by_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    other = "000000" if locks else files._MACHINE
    if not locks:

        def refuse(*args: Any, **kwargs: Any) -> bool:
            raise OSError(errno.ENOSYS, "no locks here")

        monkeypatch.setattr(files, "lock_descriptor", refuse)
    new, old = (tmp_path / f".a-{other}-{name}.tmp.pt" for name in ("aaaaaaaa", "bbbbbbbb"))
    for path in (new, old):
        path.touch()
    before = time.time() - files.ABANDONED_AFTER_S - 60
    os.utime(old, (before, before))
    sweep_temporary(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [new.name]
    write_json(tmp_path / "still.json", {})  # writing does without locks


def test_folder_of_a_live_process_stays_beside_another_of_the_same_name(tmp_path: Path) -> None:
    [left] = killed(tmp_path, "with atomic_folder(Path(sys.argv[1]) / 'cohort') as t:\n    (t / 'x').touch()")
    with atomic_folder(tmp_path / "cohort") as first:
        (first / "x").write_text("first")
        with pytest.raises(KeyError), atomic_folder(tmp_path / "cohort"):
            raise KeyError
        assert (first / "x").read_text() == "first"
    assert left.startswith(".cohort-")
    assert [path.name for path in tmp_path.iterdir()] == ["cohort"]


def test_neighbours_of_similar_names_stay_and_the_temporary_folder_goes(tmp_path: Path) -> None:
    neighbours = {".a-backup", ".a-abcdefgh", ".a-b-abcdefgh.tmp", ".b-abcdefgh.tmp", ".a[1]-abcdefgh.tmp"}
    for name in (*neighbours, ".a-abcdefgh.tmp"):
        (tmp_path / name).mkdir()
    with temporary_folder(tmp_path / "a") as temporary:
        (temporary / "x").touch()
        assert temporary.parent == tmp_path
    assert {path.name for path in tmp_path.iterdir()} == neighbours
    with atomic_folder(tmp_path / "a[1]"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == neighbours - {".a[1]-abcdefgh.tmp"} | {"a[1]"}


def test_content_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: order.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
    )
    replace = Path.replace

    def renamed(self: Path, target: Path) -> Path:
        order.append("rename")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", renamed)
    write_json(tmp_path / "a.json", {})
    assert order[0].startswith(".a-")
    assert order[1:] == ["rename", tmp_path.name]
    order.clear()
    with atomic_folder(tmp_path / "cohort") as folder:
        (folder / "images").mkdir()
        (folder / "images" / "x.png").touch()
    assert order.index("x.png") < order.index("images") < order.index("rename")
    assert order[-1] == tmp_path.name


def test_private_folders_are_their_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    private = tmp_path / "private"
    with umask(0):
        (private / "old").mkdir(parents=True)
        (private / "old" / "image.png").touch()
        (private / "link").symlink_to(tmp_path)
        assert private_folder(private) == private
        write_json(private / "new" / "deep" / "a.json", {})
        write_json(tmp_path / "open.json", {})
    assert mode(tmp_path / "open.json") == 0o666
    for path in (private, private / "old", private / "new", private / "new" / "deep"):
        assert mode(path) == 0o700
    for path in (private / "old" / "image.png", private / "new" / "deep" / "a.json"):
        assert mode(path) == 0o600
    assert mode(tmp_path) & 0o077 or mode(tmp_path) == 0o700  # a link's target is not ours


def test_name_of_the_greatest_length_is_written(tmp_path: Path) -> None:
    write_json(tmp_path / ("ä" * 125 + ".json"), {})
    with pytest.raises(OSError) as caught:
        write_json(tmp_path / ("x" * 300), {})
    assert (caught.value.errno, caught.value.filename) == (errno.ENAMETOOLONG, str(tmp_path / ("x" * 300)))


def test_full_disk_is_seen_and_names_the_file(tmp_path: Path) -> None:
    target = tmp_path / "weights.pt"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"
    code = f"""
import signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import torch; from bundle.files import save_tensors; {limit}
try:
    save_tensors(sys.argv[1], {{"a": torch.zeros(10**6)}})
except OSError as error:
    print(error.errno, error.filename)
"""
    done = subprocess.run([sys.executable, "-c", code, str(target)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"{errno.EFBIG} {target}\n", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_equal_tensors_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        save_tensors(tmp_path / name, {"x": torch.arange(3)})
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    assert torch.load(tmp_path / "a.pt", weights_only=True)["x"].tolist() == [0, 1, 2]
