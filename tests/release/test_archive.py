# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from bundle.cohort.ledger import CohortError
from bundle.files import sha256_file
from bundle.release.archive import write_archive

CONTENT = {"b.txt": b"b", "a/é.bin": bytes(1000), "a/c d": b""}


def filled(folder: Path, mode: int = 0o600) -> dict[str, str]:
    for name, content in CONTENT.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
    return {name: sha256_file(folder / name) for name in CONTENT}


def test_bits_depend_on_names_and_contents_alone(tmp_path: Path) -> None:
    files = filled(tmp_path / "one")
    write_archive(tmp_path / "one.zip", tmp_path / "one", files, "release")
    other = dict(reversed(filled(tmp_path / "two" / "three", 0o755).items()))
    os.utime(tmp_path / "two" / "three" / "b.txt", (0, 10**9))
    write_archive(tmp_path / "two.zip", tmp_path / "two" / "three", other, "release")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_any_program_unpacks_what_was_packed(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.zip", tmp_path / "in", filled(tmp_path / "in"), "release-1")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == ["release-1/a/c d", "release-1/a/é.bin", "release-1/b.txt"]
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        archive.extractall(tmp_path / "out")
    for name, content in CONTENT.items():
        assert (tmp_path / "out" / "release-1" / name).read_bytes() == content


def test_other_files_of_the_folder_stay_out(tmp_path: Path) -> None:
    files = filled(tmp_path / "in")
    (tmp_path / "in" / "notes").touch()
    write_archive(tmp_path / "a.zip", tmp_path / "in", files, "r")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert len(archive.namelist()) == 3


def test_file_that_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    files = filled(tmp_path / "in")
    (tmp_path / "in" / "b.txt").write_bytes(b"c")
    with pytest.raises(CohortError, match=r"b\.txt was changed while it was packed"):
        write_archive(tmp_path / "a.zip", tmp_path / "in", files, "r")
