# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bundle.data import DataError, Modality, check_dataset, open_dataset
from bundle.data import checks as module

Drawing = Callable[..., NDArray[np.uint8]]
FolderMaker = Callable[..., Path]


def _kinds(folder: Path) -> dict[str, str]:
    return {problem.name: problem.kind for problem in check_dataset(folder, progress=False).problems}


def test_a_usable_folder_has_no_problems(make_folder: FolderMaker) -> None:
    report = check_dataset(make_folder(), progress=False)
    assert report.problems == []
    assert report.seed == 0
    assert set(report.split_of.values()) == {"train", "val", "test"}


def test_everything_is_listed_at_once(make_folder: FolderMaker, draw: Drawing, tmp_path: Path) -> None:
    rows: list[tuple[str, object, str, str]] = [
        (f"{i:02d}.png", i % 2, f"p{i}", ("train", "val", "test")[i % 3]) for i in range(30)
    ]
    rows += [
        ("absent.png", 0, "q1", "train"),
        ("blank.png", 0, "q2", "train"),
        ("cut.png", 0, "q3", "train"),
        ("empty.png", 0, "q4", "train"),
        ("jpeg.png", 0, "q5", "train"),
        ("label.png", 7, "q6", "train"),
        ("missing.png", "", "q7", "train"),
        ("parted.png", 0, "p0", "test"),
        ("same.png", 1, "q8", "train"),
        ("text.png", 0, "q9", "train"),
        ("twin.png", 0, "q10", "val"),
    ]
    folder = make_folder(rows)
    (folder / "absent.png").unlink()
    (folder / "absent.png").mkdir()
    Image.new("L", (40, 40)).save(folder / "blank.png")
    content = (folder / "cut.png").read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    (folder / "empty.png").write_bytes(b"")
    Image.fromarray(draw(99)).save(folder / "jpeg.png", format="JPEG")
    shutil.copy(folder / "00.png", folder / "same.png")
    (folder / "text.png").write_text("no image")
    Image.open(folder / "00.png").save(folder / "twin.png", compress_level=1)
    values = draw(98).astype(np.float32)
    values[0, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, None), folder / "nan.nii")
    nibabel.save(nibabel.Nifti1Image(np.stack([draw(97)] * 4), None), folder / "volume.nii.gz")
    with open(folder / "labels.csv", "a", encoding="utf-8") as stream:
        stream.write("nan.nii,0,q11,train\nvolume.nii.gz,0,q12,train\n")
    assert _kinds(folder) == {
        "absent.png": "absent",
        "blank.png": "blank",
        "cut.png": "truncated",
        "empty.png": "zero bytes",
        "jpeg.png": "wrong extension",
        "label.png": "label out of range",
        "missing.png": "missing label",
        "nan.nii": "not finite",
        "parted.png": "patient in two splits",
        "same.png": "duplicate with another label",
        "text.png": "unreadable",
        "twin.png": "duplicate across splits",
        "volume.nii.gz": "3D volume",
    }
    for problem in check_dataset(folder, progress=False).problems:
        assert problem.message
        assert problem.cure


def test_a_duplicate_within_a_split_is_only_noted(make_folder: FolderMaker) -> None:
    rows: list[tuple[str, object, str, str]] = [
        (f"{i:02d}.png", i % 2, f"p{i}", ("train", "val", "test")[i % 3]) for i in range(30)
    ]
    folder = make_folder(rows)
    shutil.copy(folder / "00.png", folder / "06.png")
    report = check_dataset(folder, progress=False)
    assert report.problems == []
    assert report.notes == ["1 images repeat the pixels of another one of their split and class."]


def test_a_class_with_too_few_images(make_folder: FolderMaker) -> None:
    rows: list[tuple[str, object, str, str]] = [(f"{i:02d}.png", int(i < 5), f"p{i}", "") for i in range(25)]
    (problem,) = check_dataset(make_folder(rows), progress=False).problems
    assert (problem.name, problem.kind) == ("class tuberculosis", "too few images")
    assert "5 images" in problem.message


def test_a_class_that_is_absent(make_folder: FolderMaker) -> None:
    rows: list[tuple[str, object, str, str]] = [(f"{i:02d}.png", 0, f"p{i}", "") for i in range(20)]
    assert _kinds(make_folder(rows)) == {"class tuberculosis": "too few images"}


def test_a_class_missing_in_one_split(make_folder: FolderMaker) -> None:
    rows: list[tuple[str, object, str, str]] = [
        (f"{i:02d}.png", i % 2, f"p{i}", "train" if i % 2 else ("train", "val", "test")[i % 3]) for i in range(40)
    ]
    (problem,) = check_dataset(make_folder(rows), progress=False).problems
    assert problem.message == "class 1 (tuberculosis): 20 images of 20 patients, none in val and test"


def test_a_class_of_two_patients_cannot_be_split(make_folder: FolderMaker) -> None:
    rows: list[tuple[str, object, str, str]] = [(f"{i:02d}.png", i % 2, f"p{i % 4}", "") for i in range(40)]
    assert set(_kinds(make_folder(rows)).values()) == {"too few images"}


def test_images_without_a_record_are_noted(make_folder: FolderMaker, draw: Drawing) -> None:
    folder = make_folder()
    Image.fromarray(draw(99)).save(folder / "unlisted.png")
    (folder / "Thumbs.db").write_bytes(b"clutter")
    (folder / "scan.tga").write_bytes(b"no format that is read")
    (folder / "gone.txt").symlink_to("nowhere")
    (folder / ".old").mkdir()
    for number in range(5):
        Image.fromarray(draw(200 + number)).save(folder / ".old" / f"{number}.png")
    assert check_dataset(folder, progress=False).notes == [
        "Left out, hidden files (5): .old/0.png, .old/1.png, .old/2.png and 2 more.",
        "Left out, links that lead nowhere (1): gone.txt.",
        "Left out, files that are not read as images (1): scan.tga.",
        "Left out, images that no record names (1): unlisted.png.",
    ]


def test_a_second_check_opens_only_what_has_changed(
    make_folder: FolderMaker, tmp_path: Path, draw: Drawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, output = make_folder(), tmp_path / "output"
    opened: list[str] = []
    decode = module.decode

    def counting(path: Path, channels: int, strict: bool) -> NDArray[np.float32]:
        opened.append(path.name)
        return decode(path, channels, strict)

    monkeypatch.setattr(module, "decode", counting)
    check_dataset(folder, output, progress=False)
    assert len(opened) == 24
    opened.clear()
    assert check_dataset(folder, output, progress=False).problems == []
    assert opened == []
    (folder / "03.png").write_bytes(b"")
    Image.fromarray(draw(99)).save(folder / "04.png")
    os.utime(folder / "04.png", ns=(1, 1))
    problems = check_dataset(folder, output, progress=False).problems
    assert sorted(opened) == ["03.png", "04.png"]
    assert [(problem.name, problem.kind) for problem in problems] == [("03.png", "zero bytes")]
    opened.clear()
    check_dataset(folder, output, modality=Modality("toy", 3, ("a", "b")), progress=False)
    assert len(opened) == 24


def test_files_that_have_changed_places_are_opened_again(
    make_folder: FolderMaker, tmp_path: Path, draw: Drawing
) -> None:
    folder, output = make_folder(), tmp_path / "output"
    for number, name in enumerate(("03.bmp", "04.bmp")):  # of one size, and of one time, as from an archive
        Image.fromarray(draw(99 + number)).save(folder / name)
        (folder / name.replace("bmp", "png")).unlink()
        os.utime(folder / name, ns=(1, 1))
    table = folder / "labels.csv"
    table.write_text(table.read_text().replace("03.png", "03.bmp").replace("04.png", "04.bmp"))
    before = check_dataset(folder, output, progress=False).inventory.digests
    (folder / "03.bmp").rename(folder / "aside")
    (folder / "04.bmp").rename(folder / "03.bmp")
    (folder / "aside").rename(folder / "04.bmp")
    after = check_dataset(folder, output, progress=False).inventory.digests
    assert (after["03.bmp"], after["04.bmp"]) == (before["04.bmp"], before["03.bmp"])


def test_a_broken_cache_is_no_obstacle(make_folder: FolderMaker, tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "checked.json").write_text("{")
    assert check_dataset(make_folder(), tmp_path, progress=False).problems == []


def test_an_existing_split_file_counts(make_folder: FolderMaker, tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    folder, output = make_folder(), tmp_path / "output"
    open_dataset(folder, output)
    (folder / "03.png").unlink()
    (folder / "labels.csv").write_text((folder / "labels.csv").read_text().replace("03.png,1,p3,\n", ""))
    problems = check_dataset(folder, output, progress=False).problems
    assert [(problem.name, problem.kind) for problem in problems] == [("03.png", "image is gone")]


def test_a_folder_that_is_no_data_set_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="empty"):
        check_dataset(tmp_path, progress=False)


def test_one_patient_for_all_images_points_to_the_anonymisation(make_folder: FolderMaker) -> None:
    rows: list[tuple[str, object, str, str]] = [(f"{i:02d}.png", i % 2, "anonymous", "") for i in range(24)]
    problems = check_dataset(make_folder(rows), progress=False).problems
    assert len(problems) == 2
    assert all("anonymising" in problem.cure for problem in problems)


def _named(n: int, name: str = "{i:02d}.png") -> list[tuple[str, object, str, str]]:
    return [(name.format(i=i, half=i // 2), i % 2, "", "") for i in range(n)]


def test_images_without_a_patient_are_counted(make_folder: FolderMaker) -> None:
    rows = [(name, label, "p1" if i < 3 else "", "") for i, (name, label, *_) in enumerate(_named(30))]
    (note,) = check_dataset(make_folder(rows), progress=False).notes
    assert note.startswith("27 of 30 images name no patient and count as a patient each")


def test_patients_that_names_tell_are_proposed_and_the_pattern_is_kept(
    make_folder: FolderMaker, tmp_path: Path
) -> None:
    folder, output = make_folder(_named(40, "person{half}_virus_{i}.png")), tmp_path / "output"
    notes = check_dataset(folder, progress=False).notes
    assert notes[1] == (
        r"The names look as if they told patients: --patient_pattern 'person(\d+)_' finds 20 patients in 40 of these "
        "images."
    )
    data = open_dataset(folder, output, patient_pattern=r"person(\d+)_")
    assert (
        data.n_identities == len({record.patient_id for record in data.records("train")}) < len(data.records("train"))
    )
    again = open_dataset(folder, output)
    assert again.split_sha256 == data.split_sha256
    with pytest.raises(DataError, match="patient_pattern is '', but the splits"):
        open_dataset(folder, output, patient_pattern="")


def test_names_that_tell_nothing_propose_nothing(make_folder: FolderMaker) -> None:
    assert len(check_dataset(make_folder(_named(40)), progress=False).notes) == 1


def test_duplicates_are_dropped_on_demand(
    make_folder: FolderMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows: list[tuple[str, object, str, str]] = [
        (f"{i:02d}.png", i % 2, f"p{i}", ("test", "val", "train")[i // 2 % 3]) for i in range(60)
    ]
    folder, output = make_folder(rows), tmp_path / "output"
    shutil.copy(folder / "04.png", folder / "00.png")  # train and test
    shutil.copy(folder / "02.png", folder / "06.png")  # val and test
    shutil.copy(folder / "05.png", folder / "11.png")  # train and train
    shutil.copy(folder / "09.png", folder / "08.png")  # another label
    kinds = _kinds(folder)
    assert kinds == {
        "04.png": "duplicate across splits",
        "06.png": "duplicate across splits",
        "09.png": "duplicate with another label",
    }
    (folder / "08.png").write_bytes((folder / "10.png").read_bytes())
    data = open_dataset(folder, output, drop_duplicates=True)
    used = {record.name for record in data.records(("train", "val", "test"))}
    assert {f"{i:02d}.png" for i in range(60)} - used == {"00.png", "06.png", "11.png", "08.png"}
    assert "Left out, copies of another image, which is kept (4): 00.png, 06.png, 08.png and 1 more." in caplog.text
    assert open_dataset(folder, output).split_sha256 == data.split_sha256


def test_a_mask_among_images_is_named(make_folder: FolderMaker) -> None:
    folder = make_folder()
    pixels = np.zeros((300, 300), np.uint8)
    pixels[50:200, 90:200] = 255
    Image.fromarray(pixels).save(folder / "03.png")
    assert _kinds(folder) == {"03.png": "mask"}
    pixels[299, 299] = 7
    Image.fromarray(pixels).save(folder / "03.png")
    assert _kinds(folder) == {}


def test_an_output_folder_within_the_images_is_refused(make_folder: FolderMaker) -> None:
    folder = make_folder()
    for output in (folder, folder / "output", folder / "deep" / ".." / "output"):
        with pytest.raises(DataError, match="lies in dataset_dir"):
            check_dataset(folder, output, progress=False)
    assert not (folder / "private").exists()
    assert check_dataset(folder, folder.parent, progress=False).problems == []


def test_data_that_changed_after_a_training_are_refused_by_name(make_folder: FolderMaker, tmp_path: Path) -> None:
    folder, output = make_folder(), tmp_path / "output"
    first = open_dataset(folder, output)
    table = (folder / "labels.csv").read_text(encoding="utf-8")
    turned = table.replace(",0,p", ",x,p").replace(",1,p", ",0,p").replace(",x,p", ",1,p")
    (folder / "labels.csv").write_text(turned, encoding="utf-8")
    with pytest.raises(DataError, match=r"00\.png: was of class normal, now of tuberculosis") as caught:
        open_dataset(folder, output)
    assert [problem.kind for problem in caught.value.problems] == ["another label"] * 24
    (folder / "labels.csv").write_text(table, encoding="utf-8")
    Image.open(folder / "07.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "07.png")
    with pytest.raises(DataError, match=r"07\.png: shows something else than when the splits were drawn"):
        open_dataset(folder, output)
    assert open_dataset(folder, tmp_path / "other").split_sha256 != first.split_sha256
