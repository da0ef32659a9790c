# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundle.cohort.export import export
from bundle.cohort.formats import FORMATS
from bundle.cohort.ledger import CohortError
from bundle.cohort.writer import ADDING, MANIFEST, verify_cohort, write_cohort
from bundle.data.layouts import read_folder
from bundle.data.readers import decode
from bundle.lock import InUseError, folder_lock
from tests.cohort.test_writer import NAMES, change, digest, images, resealed

BOTH = ("dicom", "nifti")


def make(folder: Path, formats: tuple[str, ...] = (), channels: int = 1) -> Path:
    write_cohort(folder, images(channels), NAMES, {"seed": 4, "modality": "xray"}, "# Datasheet\n", ("png", *formats))
    return folder


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    return make(tmp_path / "run" / "cohort")


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, str]:
    """SHA-256 of the files of the same cohort, written in all formats at once."""
    return digest(make(tmp_path / "whole" / "cohort", BOTH))


@pytest.mark.parametrize("channels", [1, 3])
def test_files_of_every_format_show_the_same_pixels(tmp_path: Path, channels: int) -> None:
    folder = make(tmp_path / "cohort", BOTH, channels)
    stems = sorted(path.stem for path in (folder / "images").iterdir())
    assert len(stems) == 5
    for name in BOTH:
        assert len(list((folder / name).iterdir())) == 5
        for stem in stems:
            shown, expected = (decode(folder / FORMATS[form].name(stem), channels) for form in (name, "png"))
            assert np.array_equal(shown, expected)


def test_export_adds_what_writing_all_at_once_writes(
    cohort: Path, whole: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in cohort.rglob("*.png")}
    export(cohort, "dicom,nifti")
    assert digest(cohort) == whole
    assert [path.name for path in cohort.parent.iterdir()] == ["cohort"]
    assert capsys.readouterr().out == (
        f"{cohort} has DICOM and NIfTI files now: 18 files, each as the manifest says.\n"
    )
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_formats_may_be_added_one_after_the_other(cohort: Path, whole: dict[str, str]) -> None:
    export(cohort, ["nifti"])
    assert len(verify_cohort(cohort)["files"]) == 13
    export(cohort, ["png", "dicom"])
    assert digest(cohort) == whole


def test_export_of_what_is_there_verifies_it_and_says_so(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(cohort, BOTH)
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in cohort.rglob("*")}
    export(cohort, "nifti")
    assert "has NIfTI files already: 18 files, each as the manifest says" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in cohort.rglob("*")}
    change(cohort / "nifti" / "normal_000001.nii.gz")
    with pytest.raises(CohortError, match=r"nifti/normal_000001\.nii\.gz was changed"):
        export(cohort, "nifti")


def one_short(cohort: Path) -> None:
    (cohort / "dicom" / "normal_000001.dcm").unlink()
    resealed(cohort)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda cohort: change(cohort / "dicom" / "normal_000002.dcm"), r"dicom/normal_000002\.dcm was changed"),
        (lambda cohort: (cohort / "dicom" / "normal_000002.dcm").unlink(), r"dicom/normal_000002\.dcm is absent"),
        (lambda cohort: (cohort / "dicom" / "x.dcm").touch(), r"dicom/x\.dcm does not belong to it\. Remove what was"),
        (one_short, "dicom does not hold one file for each image"),
    ],
)
def test_touched_file_is_reported_like_an_image(tmp_path: Path, spoil: Callable[[Path], None], words: str) -> None:
    folder = make(tmp_path / "cohort", BOTH)
    spoil(folder)
    with pytest.raises(CohortError, match=words) as caught:
        verify_cohort(folder)
    assert "\n" not in str(caught.value)


def refusal(folder: Path, formats: Any = BOTH) -> str:
    with pytest.raises(CohortError) as caught:
        export(folder, formats)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folder_that_is_no_cohort_is_left_alone(cohort: Path, tmp_path: Path) -> None:
    assert refusal(cohort.parent).endswith(f"beside it, what is private. Name {cohort}.")
    (tmp_path / "images").mkdir()
    message = refusal(tmp_path / "images")
    assert message.endswith(
        "this is no complete cohort. Only a cohort as it was generated or received can be exported."
    )
    assert "formats must name some of" in refusal(cohort, "jpeg")
    change(cohort / "images" / "normal_000001.png")
    before = digest(cohort)
    assert "normal_000001.png was changed. Only a cohort as it was" in refusal(cohort)
    assert digest(cohort) == before
    assert [path.name for path in cohort.parent.iterdir()] == ["cohort"]


def test_pictures_of_another_kind_and_names_that_are_no_names_are_refused(cohort: Path) -> None:
    picture = cohort / "images" / "normal_000001.png"
    with Image.open(picture) as image:
        image.convert("I;16").save(picture)
    resealed(cohort)
    assert "normal_000001.png is no PNG of 8 bits, grey or RGB" in refusal(cohort)
    table = cohort / "labels.csv"
    table.write_text(table.read_text().replace("0,normal", "0,a\\b"))
    resealed(cohort)
    assert "has names of classes that cannot be used" in refusal(cohort)
    assert not (cohort / "dicom").exists()
    assert [path.name for path in cohort.parent.iterdir()] == ["cohort"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("writer", ["write_bytes", "write_text"])
def test_disk_that_takes_no_more_leaves_the_cohort_as_it_was(
    cohort: Path, monkeypatch: pytest.MonkeyPatch, code: int, writer: str
) -> None:
    calls = []
    write = getattr(Path, writer)

    def fail(self: Path, content: Any, **options: Any) -> int:
        calls.append(self)
        if len(calls) == 2:
            raise OSError(code, os.strerror(code), str(self))
        return int(write(self, content, **options))

    before = digest(cohort)
    with monkeypatch.context() as patch:
        patch.setattr(Path, writer, fail)
        with pytest.raises(OSError) as caught:
            export(cohort, BOTH)
    assert (caught.value.errno, caught.value.filename) == (code, str(cohort))
    assert digest(cohort) == before
    assert [path.name for path in cohort.parent.iterdir()] == ["cohort"]


def kill_at(call: int, cohort: Path) -> None:
    """Exports a cohort and kills the process before the ``call``-th renaming, or after the first file for 0."""
    renamed = []
    replace, write = Path.replace, Path.write_bytes

    def replace_or_die(self: Path, target: Path) -> Path:
        renamed.append(target)
        if len(renamed) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    def write_and_die(self: Path, content: Any) -> int:
        write(self, content)
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    Path.replace = replace_or_die  # type: ignore[assignment, method-assign]
    if not call:
        Path.write_bytes = write_and_die  # type: ignore[assignment, method-assign]
    export(cohort, BOTH)


@pytest.mark.skipif(os.name != "posix", reason="needs processes that are forked")
@pytest.mark.parametrize("call", range(5))
def test_killed_export_leaves_a_cohort_that_holds_and_is_repeated_to_the_same_bits(
    cohort: Path, whole: dict[str, str], call: int
) -> None:
    before = digest(cohort)
    process = multiprocessing.get_context("fork").Process(target=kill_at, args=(call, cohort))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    manifest = verify_cohort(cohort)
    assert len(manifest["files"]) == 8
    assert len(manifest.get(ADDING, {})) == (10 if call > 1 else 0)
    left = digest(cohort)
    assert {name: left[name] for name in before if name != MANIFEST} == {
        name: sha for name, sha in before.items() if name != MANIFEST
    }
    if call < 2:
        assert left == before
    export(cohort, BOTH)
    assert digest(cohort) == whole
    assert [path.name for path in cohort.parent.iterdir()] == ["cohort"]


def test_remains_of_an_interrupted_export_are_removed_where_they_are_not_asked_for(
    cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digest(cohort)
    replace, renamed = Path.replace, []

    def interrupt(self: Path, target: Path) -> Path:
        renamed.append(target)
        if len(renamed) == 3:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            export(cohort, BOTH)
    assert ADDING in verify_cohort(cohort)
    assert (cohort / "dicom").is_dir()
    assert not (cohort / "nifti").exists()
    change(cohort / "dicom" / "normal_000001.dcm")
    assert "dicom/normal_000001.dcm was changed" in refusal(cohort)
    (cohort / "dicom" / "normal_000001.dcm").unlink()  # what was being added may be absent
    export(cohort, "png")
    assert digest(cohort) == before


def test_files_named_outside_the_cohort_are_not_touched(cohort: Path) -> None:
    witness = cohort.parent / "witness"
    witness.touch()
    resealed(cohort, **{ADDING: {"../witness": "0"}})
    assert "names files outside the cohort" in refusal(cohort)
    assert witness.exists()


def test_second_export_is_refused_while_the_first_is_running(cohort: Path) -> None:
    before = digest(cohort)
    with folder_lock(cohort), pytest.raises(InUseError, match="another run adds files to it"):
        export(cohort, BOTH)
    assert digest(cohort) == before
    export(cohort, BOTH)


def test_cohort_in_all_formats_is_read_as_data_once(tmp_path: Path) -> None:
    folder = read_folder(make(tmp_path / "cohort", BOTH))
    assert [record.name for record in folder.records] == [f"images/{c}.png" for c in names_of_images()]
    assert folder.problems == []
    assert len([entry for entry in folder.left_out if entry.reason == "images that no record names"]) == 11


def names_of_images() -> list[str]:
    return [f"normal_{i:06d}" for i in (1, 2, 3)] + [f"tuberculosis_{i:06d}" for i in (1, 2)]


def test_manifest_says_nothing_of_formats_that_are_not_there(cohort: Path) -> None:
    manifest = json.loads((cohort / MANIFEST).read_text(encoding="utf-8"))
    assert manifest.keys() == {"seed", "modality", "format", "files", "manifest_sha256"}
