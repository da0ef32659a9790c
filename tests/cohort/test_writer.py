# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bundle.cohort.formats import FORMATS
from bundle.cohort.ledger import CohortError
from bundle.cohort.writer import FORMAT, MANIFEST, MANIFEST_SHA256, verify_cohort, write_cohort
from bundle.files import content_digest, json_text, sha256_file

NAMES = ("normal", "tuberculosis")


def images(channels: int = 1, numbers: tuple[int, int] = (3, 2)) -> list[tuple[int, Tensor]]:
    random = torch.Generator().manual_seed(0)
    shape = (16, 16) if channels == 1 else (16, 16, 3)
    return [
        (label, torch.randint(0, 256, shape, generator=random, dtype=torch.uint8))
        for label, number in enumerate(numbers)
        for _ in range(number)
    ]


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    write_cohort(tmp_path / "cohort", images(), NAMES, {"seed": 4}, "# Datasheet\n")
    return tmp_path / "cohort"


def digest(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_files_of_a_cohort(cohort: Path) -> None:
    assert set(digest(cohort)) == {
        "labels.csv",
        "manifest.json",
        "datasheet.md",
        "contact_sheet.png",
        "images/normal_000001.png",
        "images/normal_000002.png",
        "images/normal_000003.png",
        "images/tuberculosis_000001.png",
        "images/tuberculosis_000002.png",
    }
    assert (cohort / "datasheet.md").read_text() == "# Datasheet\n"
    assert [path.name for path in cohort.parent.iterdir()] == ["cohort"]


def test_labels_name_every_image(cohort: Path) -> None:
    with open(cohort / "labels.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["image"] for row in rows] == sorted(name for name in digest(cohort) if name.startswith("images/"))
    assert [(row["label"], row["label_name"]) for row in rows] == [("0", "normal")] * 3 + [("1", "tuberculosis")] * 2


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_kept(tmp_path: Path, channels: int) -> None:
    given = images(channels)
    write_cohort(tmp_path / "cohort", given, NAMES, {}, "")
    with Image.open(tmp_path / "cohort" / "images" / "normal_000002.png") as picture:
        assert picture.mode == ("L" if channels == 1 else "RGB")
        assert np.array_equal(np.asarray(picture), given[1][1].numpy())


def test_manifest_has_what_was_given_and_every_files_hash(cohort: Path) -> None:
    manifest = verify_cohort(cohort)
    assert manifest["seed"] == 4
    assert manifest["format"] == FORMAT
    assert manifest["files"] == {name: sha for name, sha in digest(cohort).items() if name != MANIFEST}


def test_same_cohort_same_bytes(cohort: Path, tmp_path: Path) -> None:
    write_cohort(tmp_path / "again", images(), NAMES, {"seed": 4}, "# Datasheet\n")
    assert digest(tmp_path / "again") == digest(cohort)


def test_one_class_and_many_images(tmp_path: Path) -> None:
    write_cohort(tmp_path / "one", images(numbers=(0, 30)), NAMES, {}, "")
    assert len(list((tmp_path / "one" / "images").iterdir())) == 30
    verify_cohort(tmp_path / "one")


def test_nothing_is_overwritten(cohort: Path) -> None:
    before = digest(cohort)
    with pytest.raises(CohortError, match=r"exists and is not overwritten\. Name another output_dir"):
        write_cohort(cohort, images(numbers=(1, 1)), NAMES, {}, "")
    assert digest(cohort) == before


def test_writing_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[int, Tensor]]:
        yield images()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cohort(tmp_path / "cohort", broken(), NAMES, {}, "")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_behind_is_removed(tmp_path: Path) -> None:
    half = tmp_path / ".cohort-abcd_123.tmp"
    (half / "images").mkdir(parents=True)
    (half / "images" / "normal_000001.png").write_bytes(b"half")
    write_cohort(tmp_path / "cohort", images(), NAMES, {}, "")
    assert [path.name for path in tmp_path.iterdir()] == ["cohort"]


def change(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


@pytest.mark.parametrize(
    ("name", "spoil", "words"),
    [
        ("images/normal_000001.png", Path.unlink, r"images/normal_000001\.png is absent"),
        ("labels.csv", change, r"labels\.csv was changed"),
        ("images/stranger.png", Path.touch, r"images/stranger\.png does not belong to it"),
        (MANIFEST, Path.unlink, r"manifest\.json cannot be read"),
        (MANIFEST, change, r"manifest\.json cannot be read"),
    ],
)
def test_verifying_names_what_is_wrong(cohort: Path, name: str, spoil: object, words: str) -> None:
    assert callable(spoil)
    spoil(cohort / name)
    with pytest.raises(CohortError, match=words):
        verify_cohort(cohort)


def test_verifying_stops_listing_at_five(cohort: Path) -> None:
    for number in range(9):
        (cohort / f"extra{number}").touch()
    with pytest.raises(CohortError, match=r"extra4 does not belong to it and more\. Remove what was added"):
        verify_cohort(cohort)


def resealed(cohort: Path, **fields: Any) -> None:
    """Gives the manifest other fields and the hashes that go with them."""
    manifest = json.loads((cohort / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"] = {name: sha for name, sha in digest(cohort).items() if name != MANIFEST}
    manifest = {key: value for key, value in {**manifest, **fields}.items() if key != MANIFEST_SHA256}
    manifest[MANIFEST_SHA256] = content_digest(manifest, 64)
    (cohort / MANIFEST).write_text(json_text(manifest), encoding="utf-8")


def link(cohort: Path) -> None:
    image = cohort / "images" / "normal_000001.png"
    image.rename(cohort.parent / "elsewhere.png")
    image.symlink_to(cohort.parent / "elsewhere.png")


def pipe_as_manifest(cohort: Path) -> None:
    (cohort / MANIFEST).unlink()
    os.mkfifo(cohort / MANIFEST)


def relabelled(cohort: Path) -> None:
    table = cohort / "labels.csv"
    table.write_text(table.read_text().replace("_000002.png,0,normal", "_000002.png,1,tuberculosis"))
    resealed(cohort)


def listed_twice(cohort: Path) -> None:
    table = cohort / "labels.csv"
    table.write_text(table.read_text() + table.read_text().splitlines()[1] + "\n")
    resealed(cohort)


def edited(cohort: Path) -> None:
    path = cohort / MANIFEST
    path.write_text(path.read_text().replace('"seed": 4', '"seed": 5'))


def doubled_key(cohort: Path) -> None:
    path = cohort / MANIFEST
    path.write_text(path.read_text().replace('"seed": 4', '"seed": 5,\n  "seed": 4'))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (link, r"images/normal_000001\.png is a link"),
        (lambda cohort: (cohort / "new").symlink_to(cohort.parent), "new is a link"),
        (lambda cohort: (cohort / "gone").symlink_to("nowhere"), "gone is a link"),
        (lambda cohort: (cohort / "empty").mkdir(), "the folder empty does not belong to it"),
        (lambda cohort: (cohort / "images" / "more").mkdir(), "the folder images/more does not belong to it"),
        (lambda cohort: os.mkfifo(cohort / "pipe"), "pipe is no regular file"),
        (pipe_as_manifest, r"manifest\.json cannot be read"),
        (lambda cohort: (cohort / MANIFEST).write_text("[" * 100_000), r"manifest\.json cannot be read"),
        (lambda cohort: (cohort / MANIFEST).write_text("[1]"), r"manifest\.json cannot be read"),
        (edited, r"manifest\.json was edited"),
        (doubled_key, r"manifest\.json was edited"),
        (lambda cohort: resealed(cohort, format=99), "is of format 99, and this release reads format 2"),
        (lambda cohort: resealed(cohort, format=1), "is of format 1, .*Verify it with the release that wrote it"),
        (lambda cohort: resealed(cohort, files={"../x": "0"}), "names files outside"),
        (lambda cohort: resealed(cohort, files={"/etc/hostname": "0"}), "names files outside"),
        (lambda cohort: resealed(cohort, files=["labels.csv"]), "names files outside"),
        (relabelled, "it has 2 images of normal, and the manifest says 3"),
        (listed_twice, "lists 6 images, and there are 5"),
        (lambda cohort: resealed(cohort, configuration={"n_images": 6}), "it has 5 images, and 6 were asked for"),
        (lambda cohort: resealed(cohort, class_names=["a", "b"]), "not those of the manifest's class_names"),
        (lambda cohort: resealed(cohort, gate=[3, 2]), "fields of another form"),
    ],
)
def test_cohort_that_somebody_touched_is_refused(tmp_path: Path, spoil: Callable[[Path], None], words: str) -> None:
    manifest = {
        "seed": 4,
        "configuration": {"n_images": 5},
        "class_names": list(NAMES),
        "gate": {"normal": {"images": 3}, "tuberculosis": {"images": 2}},
    }
    write_cohort(tmp_path / "cohort", images(), NAMES, manifest, "")
    verify_cohort(tmp_path / "cohort")
    spoil(tmp_path / "cohort")
    with pytest.raises(CohortError, match=words) as caught:
        verify_cohort(tmp_path / "cohort")
    assert "\n" not in str(caught.value)
    assert re.search("emove (the folder|what was added)", str(caught.value))


def test_link_to_a_cohort_is_none(cohort: Path) -> None:
    (cohort.parent / "link").symlink_to(cohort)
    with pytest.raises(CohortError, match="is a link or no folder"):
        verify_cohort(cohort.parent / "link")


def test_cohort_that_falls_short_is_not_called_complete(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="it has 5 images, and 8 were asked for"):
        write_cohort(tmp_path / "cohort", images(), NAMES, {"configuration": {"n_images": 8}}, "")
    assert list(tmp_path.iterdir()) == []


def test_manifest_is_of_what_was_written_and_not_of_what_lies_there(tmp_path: Path) -> None:
    def meddling() -> Iterator[tuple[int, Tensor]]:
        yield from images()
        [folder] = tmp_path.glob(".cohort-*")
        change(folder / "images" / "normal_000001.png")

    with pytest.raises(CohortError, match=r"normal_000001\.png was changed"):
        write_cohort(tmp_path / "cohort", meddling(), NAMES, {}, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../../escaped", "/etc/x", "a\\b", "", ".hidden", "a:b", "a\nb", "x" * 300])
def test_class_name_that_is_no_part_of_a_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CohortError, match="cannot be part of a file's name") as caught:
        write_cohort(tmp_path / "out" / "cohort", images(), ("normal", name), {}, "")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_class_names_that_differ_in_capitals_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="capital letters"):
        write_cohort(tmp_path / "cohort", images(), ("TB", "tb"), {}, "")


def test_class_name_is_no_formula(tmp_path: Path) -> None:
    write_cohort(tmp_path / "cohort", images(), ("=cmd", "+x"), {"class_names": ["=cmd", "+x"]}, "")
    verify_cohort(tmp_path / "cohort")
    assert "images/=cmd_000001.png,0,'=cmd\n" in (tmp_path / "cohort" / "labels.csv").read_text()


def test_full_disk_names_the_cohort_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError) as caught:
        write_cohort(tmp_path / "cohort", images(), NAMES, {}, "")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "cohort"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("formats", [("png",), ("png", "dicom", "nifti")])
def test_two_processes_write_what_one_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, formats: tuple[str, ...]
) -> None:
    """The first of two processes, after the second has written its share."""
    given = images()
    alone = tmp_path / "alone" / "cohort"
    write_cohort(alone, given, NAMES, {"seed": 4}, "# Datasheet\n", formats)
    stems = [f"{NAMES[label]}_{number:06d}" for label, number in ((0, 1), (0, 2), (0, 3), (1, 1), (1, 2))]

    def share(value: Tensor) -> Tensor:
        [folder] = tmp_path.glob("both/.cohort-*")
        for index, stem in enumerate(stems):
            for place, name in enumerate(formats):
                path = FORMATS[name].name(stem)
                if index % 2:
                    (folder / path).write_bytes((alone / path).read_bytes())
                    value[index * len(formats) + place] = torch.tensor(list(bytes.fromhex(sha256_file(alone / path))))
                assert (folder / path).exists()
        return value

    monkeypatch.setattr("ignite.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("ignite.distributed.all_reduce", share)
    write_cohort(tmp_path / "both" / "cohort", given, NAMES, {"seed": 4}, "# Datasheet\n", formats)
    assert digest(tmp_path / "both" / "cohort") == digest(alone)
