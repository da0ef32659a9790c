# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bundle.data import LAYOUTS, DataError, Modality, get_modality
from bundle.data.layouts import read_folder
from bundle.data.records import Record


def read_records(folder: Any, layout: Any = "auto", modality: str | Modality = "xray") -> list[Record]:
    """Returns the records of a folder that has no problems."""
    found = read_folder(folder, layout, modality)
    if found.problems:
        raise DataError(found.problems)
    return found.records


def _touch(folder: Path, *names: str) -> Path:
    """Layouts open no image, so an empty file will do."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def _csv(folder: Path, text: str) -> Path:
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    return folder


def test_labels_csv(tmp_path: Path) -> None:
    _csv(tmp_path, "image,label,label_name,patient_id,split\nb.png,1,tuberculosis,p,test\nsub/a.png,0,normal,,train\n")
    first, second = read_records(tmp_path)
    assert (first.name, first.label, first.patient_id, first.split) == ("b.png", 1, "p", "test")
    assert first.image == tmp_path / "b.png"
    assert (second.name, second.patient_id, second.split) == ("sub/a.png", "sub/a.png", "train")


def test_labels_csv_with_byte_order_mark_spaces_names_and_backslashes(tmp_path: Path) -> None:
    _csv(tmp_path, "\ufeffimage , label,split\nsub\\a.png, TB,Validation\n")
    (record,) = read_records(tmp_path)
    assert (record.name, record.label, record.split) == ("sub/a.png", 1, "val")


def test_labels_csv_with_the_name_of_the_class_alone(tmp_path: Path) -> None:
    (record,) = read_records(_csv(tmp_path, "image,label,label_name\na.png,,normal\n"))
    assert record.label == 0


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("a.png,,,", "missing label"),
        ("a.png,2,,", "label out of range"),
        ("a.png,-1,,", "label out of range"),
        ("a.png,0.5,,", "label out of range"),
        ("a.png,0,tuberculosis,", "label mismatch"),
        (",0,,", "missing name"),
        ("../a.png,0,,", "outside"),
        ("a.png,0,,holdout", "unknown split"),
        ("ok.png,0,,", "duplicate name"),
    ],
)
def test_labels_csv_lists_bad_rows(tmp_path: Path, row: str, kind: str) -> None:
    _csv(tmp_path, f"image,label,label_name,split\nok.png,0,,\n{row}\n")
    problems = read_folder(tmp_path).problems
    assert [problem.kind for problem in problems] == [kind]
    assert "3" in problems[0].message
    assert problems[0].cure
    with pytest.raises(DataError, match=r"labels\.csv"):
        read_records(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,grade\na,0\n", r"no column 'image'.*found \['file', 'grade'\]"),
        ("image,label\n", "no rows"),
        ("", "no column"),
    ],
)
def test_labels_csv_that_is_no_table(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_records(_csv(tmp_path, text))


def test_labels_csv_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes("image,label\nä.png,0\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        read_records(tmp_path)


@pytest.mark.parametrize("below", ["", "CXR_png/"])
@pytest.mark.parametrize(("prefix", "layout"), [("CHNCXR", "shenzhen"), ("MCUCXR", "montgomery")])
def test_published_file_names(tmp_path: Path, prefix: str, layout: str, below: str) -> None:
    names = [f"{below}{prefix}_0001_0.png", f"{below}{prefix}_0002_1.png"]
    _touch(tmp_path, *names, f"{below}Thumbs.db", "ClinicalReadings/CHNCXR_0001_0.txt")
    folder = read_folder(tmp_path)
    assert folder.layout == layout
    assert [(record.name, record.label, record.split) for record in folder.records] == [
        (names[0], 0, None),
        (names[1], 1, None),
    ]
    assert len({record.patient_id for record in folder.records}) == 2


def test_a_label_out_of_range_in_a_file_name(tmp_path: Path) -> None:
    _touch(tmp_path, "CHNCXR_0001_0.png", "CHNCXR_0002_7.png")
    (problem,) = read_folder(tmp_path).problems
    assert (problem.name, problem.kind) == ("CHNCXR_0002_7.png", "label out of range")


FUNDUS = "fundus"


def _table(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")


def test_aptos_as_published(tmp_path: Path) -> None:
    _touch(tmp_path, "train_images/000c1434d8d7.png", "train_images/001639a390f0.png", "test_images/0005cfc8afb6.png")
    _table(tmp_path, "train.csv", "id_code,diagnosis\n000c1434d8d7,2\n001639a390f0,4\n")
    _table(tmp_path, "test.csv", "id_code\n0005cfc8afb6\n")
    folder = read_folder(tmp_path, modality=FUNDUS)
    assert (folder.layout, folder.problems) == ("aptos", [])
    assert [(record.name, record.label) for record in folder.records] == [
        ("train_images/000c1434d8d7.png", 2),
        ("train_images/001639a390f0.png", 4),
    ]
    assert len({record.patient_id for record in folder.records}) == 2


@pytest.mark.parametrize("below", ["", "train/"])
def test_eyepacs_as_published(tmp_path: Path, below: str) -> None:
    _touch(tmp_path, *(f"{below}{name}.jpeg" for name in ("10_left", "10_right", "13_left")))
    _table(tmp_path, "trainLabels.csv", "image,level\n10_left,0\n10_right,3\n13_left,1\n")
    folder = read_folder(tmp_path, modality=FUNDUS)
    assert (folder.layout, folder.problems) == ("eyepacs", [])
    assert [(record.name, record.label, record.patient_id) for record in folder.records] == [
        (f"{below}10_left.jpeg", 0, "10"),
        (f"{below}10_right.jpeg", 3, "10"),
        (f"{below}13_left.jpeg", 1, "13"),
    ]
    assert folder.records[0].image == tmp_path / below / "10_left.jpeg"


@pytest.mark.parametrize("home", ["", "B. Disease Grading/"])
def test_idrid_as_published(tmp_path: Path, home: str) -> None:
    training, testing = (f"{home}1. Original Images/{name} Set" for name in ("a. Training", "b. Testing"))
    _touch(tmp_path, f"{training}/IDRiD_001.jpg", f"{training}/IDRiD_002.jpg", f"{testing}/IDRiD_001.jpg")
    header = "Image name,Retinopathy grade,Risk of macular edema ,,,\n"
    grades = f"{home}2. Groundtruths"
    _table(
        tmp_path, f"{grades}/a. IDRiD_Disease Grading_Training Labels.csv", header + "IDRiD_001,3,2\nIDRiD_002,0,0\n"
    )
    _table(tmp_path, f"{grades}/b. IDRiD_Disease Grading_Testing Labels.csv", header + "IDRiD_001,4,0,,,\n")
    folder = read_folder(tmp_path, modality=FUNDUS)
    assert (folder.layout, folder.problems) == ("idrid", [])
    assert [(record.name, record.label) for record in folder.records] == [
        (f"{training}/IDRiD_001.jpg", 3),
        (f"{training}/IDRiD_002.jpg", 0),
        (f"{testing}/IDRiD_001.jpg", 4),
    ]
    assert len({record.patient_id for record in folder.records}) == 3


def test_idrid_asked_for_where_it_is_not(tmp_path: Path) -> None:
    _touch(tmp_path, "a.png")
    with pytest.raises(DataError, match="no grades of IDRiD"):
        read_records(tmp_path, "idrid", FUNDUS)


def test_a_grade_that_there_is_not(tmp_path: Path) -> None:
    _touch(tmp_path, "train_images/a.png", "train_images/b.png")
    _table(tmp_path, "train.csv", "id_code,diagnosis\na,5\nb,4\n")
    (problem,) = read_folder(tmp_path, modality=FUNDUS).problems
    assert (problem.name, problem.kind) == ("train_images/a.png", "label out of range")
    assert problem.cure.endswith("0 (no_dr), 1 (mild), 2 (moderate), 3 (severe), 4 (proliferative)")


def test_a_table_whose_columns_are_named_by_the_user(tmp_path: Path) -> None:
    _touch(tmp_path, "photos/p1-od.png", "photos/p1-os.png", "photos/p2-od.png")
    _table(tmp_path, "eyes.csv", " File ,Grade,Set\np1-od,1,train\np1-os,moderate,train\np2-od,0,test\n")
    table = {"file": "eyes.csv", "image": "file", "label": "grade", "split": "set", "folder": "photos"}
    folder = read_folder(tmp_path, {**table, "patient": r"^(\w+)-"}, FUNDUS)
    assert [(record.name, record.label, record.patient_id, record.split) for record in folder.records] == [
        ("photos/p1-od.png", 1, "p1", "train"),
        ("photos/p1-os.png", 2, "p1", "train"),
        ("photos/p2-od.png", 0, "p2", "test"),
    ]


def test_a_table_with_unknown_columns_is_named_with_them(tmp_path: Path) -> None:
    _touch(tmp_path, "a.png")
    _table(tmp_path, "eyes.csv", "file,grade\na,0\n")
    with pytest.raises(DataError, match=r"eyes\.csv \(columns \['file', 'grade'\]\): --layout"):
        read_records(tmp_path, modality=FUNDUS)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"imag": "a"}, "no 'imag'; did you mean 'image'"),
        ({"image": 3}, "image is 3; give a text"),
        ({"patient": "("}, "no regular expression"),
        ({"patient": "x"}, "needs one group"),
        ({"file": "absent.csv"}, r"no absent\.csv in it"),
    ],
)
def test_a_table_described_wrongly(tmp_path: Path, layout: dict[str, object], message: str) -> None:
    _csv(tmp_path, "image,label\na.png,0\n")
    with pytest.raises(DataError, match=message):
        read_folder(tmp_path, layout)


def test_several_folders_are_one_data_set(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    _touch(first, "a.png", "b.png")
    _csv(first, "image,label,patient_id,split\na.png,0,p1,train\nb.png,1,,test\n")
    _touch(second, "a.png")
    _csv(second, "image,label,patient_id,split\na.png,1,p1,extra\nc.png,7,p2,extra\n")
    folder = read_folder([first, str(second)])
    assert [(record.name, record.patient_id, record.split) for record in folder.records] == [
        ("first/a.png", "p1", "train"),
        ("first/b.png", "first/b.png", "test"),
        ("second/a.png", "p1", "extra"),
        ("second/c.png", "p2", "extra"),
    ]
    assert folder.records[2].image == second / "a.png"
    assert [problem.name for problem in folder.problems] == ["second/c.png"]
    assert folder.paths == (first, second)
    assert read_folder([first]).records == read_folder(first).records


def test_several_folders_that_cannot_be_one(tmp_path: Path) -> None:
    _touch(tmp_path / "x" / "set", "pneumonia/a.png", "tb/b.png")
    _touch(tmp_path / "y" / "set", "normal/a.png", "tb/b.png")
    _touch(tmp_path / "other", "normal/a.png", "tb/b.png")
    with pytest.raises(DataError, match="several folders called 'set'"):
        read_folder([tmp_path / "x" / "set", tmp_path / "y" / "set"])
    with pytest.raises(DataError, match=r"differently \(set: pneumonia, tuberculosis; other: normal, tuberculosis\)"):
        read_folder([tmp_path / "x" / "set", tmp_path / "other"])
    with pytest.raises(DataError, match="empty list"):
        read_folder([])


def test_a_name_that_may_mean_two_files(tmp_path: Path) -> None:
    _touch(tmp_path, "x/a.png", "y/a.jpg")
    _csv(tmp_path, "image,label\na,0\n")
    (problem,) = read_folder(tmp_path).problems
    assert (problem.name, problem.kind) == ("a", "ambiguous name")
    assert "x/a.png or y/a.jpg" in problem.message


def test_class_folders_by_name(tmp_path: Path) -> None:
    _touch(tmp_path, "Tuberculosis/a.png", "NORMAL/deep/b.JPG", "NORMAL/notes.txt", ".hidden/c.png", "__MACOSX/a.png")
    folder = read_folder(tmp_path)
    assert folder.class_names == ("normal", "tuberculosis")
    assert [(record.name, record.label) for record in folder.records] == [
        ("NORMAL/deep/b.JPG", 0),
        ("Tuberculosis/a.png", 1),
    ]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("sick", "healthy lungs"), {"healthy lungs": 0, "sick": 1}),
        (("a tb study", "Normal"), {"Normal": 0, "a tb study": 1}),
        (("TB", "control"), {"control": 0, "TB": 1}),
        (("0", "1"), {"0": 0, "1": 1}),
    ],
)
def test_class_folders_of_other_names(tmp_path: Path, names: tuple[str, ...], expected: dict[str, int]) -> None:
    _touch(tmp_path, *(f"{name}/a.png" for name in names))
    assert {record.name.split("/")[0]: record.label for record in read_records(tmp_path)} == expected


def test_class_names_are_those_of_the_folders_where_the_preset_knows_none(tmp_path: Path) -> None:
    _touch(tmp_path, "pneumonia/a.png", "TB/b.png")
    assert read_folder(tmp_path).class_names == ("pneumonia", "tuberculosis")


def test_class_folders_within_split_folders(tmp_path: Path) -> None:
    _touch(tmp_path, "train/normal/a.png", "train/tb/b.png", "valid/normal/c.png", "test/tb/d.png")
    assert {record.name: (record.label, record.split) for record in read_records(tmp_path)} == {
        "train/normal/a.png": (0, "train"),
        "train/tb/b.png": (1, "train"),
        "valid/normal/c.png": (0, "val"),
        "test/tb/d.png": (1, "test"),
    }


def test_two_class_folders_of_one_class(tmp_path: Path) -> None:
    _touch(tmp_path, "TB/a.png", "tuberculosis/a.png", "normal/a.png")
    with pytest.raises(DataError, match="tb and tuberculosis are one class under two names"):
        read_records(tmp_path)


def test_dicom_files_in_class_folders_bring_their_patients(
    tmp_path: Path, draw: Callable[..., NDArray[np.uint8]], write_dicom: Callable[..., object]
) -> None:
    for name, patient in (("normal/a.dcm", "P1"), ("normal/b", "P1"), ("tb/c.dcm", "")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_dicom(tmp_path / name, draw(), PatientID=patient)
    assert [record.patient_id for record in read_records(tmp_path)] == ["P1", "P1", "tb/c.dcm"]


def test_labels_csv_wins_over_file_names(tmp_path: Path) -> None:
    _touch(tmp_path, "CHNCXR_0001_0.png", "normal/a.png", "tb/b.png")
    _csv(tmp_path, "image,label\nCHNCXR_0001_0.png,1\n")
    assert [record.label for record in read_records(tmp_path)] == [1]


def test_layout_forces(tmp_path: Path) -> None:
    _touch(tmp_path, "normal/a.png", "tb/b.png")
    _csv(tmp_path, "image,label\nnormal/a.png,1\n")
    assert len(read_records(tmp_path, layout="class_folders")) == 2
    with pytest.raises(DataError, match="CHNCXR"):
        read_records(tmp_path, layout="shenzhen")


def test_two_layouts_in_one_folder_must_be_told_apart(tmp_path: Path) -> None:
    _touch(tmp_path, "CHNCXR_0001_0.png", "MCUCXR_0001_0.png")
    with pytest.raises(DataError, match="several layouts: shenzhen, montgomery"):
        read_records(tmp_path)


def test_an_unknown_layout_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'shenzhen'"):
        read_records(tmp_path, layout="shenzen")


def test_folders_that_hold_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_records(tmp_path / "absent")
    with pytest.raises(DataError, match="is empty"):
        read_records(tmp_path)
    with pytest.raises(DataError, match="no dataset_dir given"):
        read_records("")
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(DataError, match="none of the layouts"):
        read_records(tmp_path)
    with pytest.raises(DataError, match="is a file"):
        read_records(tmp_path / "notes.txt")


def test_the_order_of_records_does_not_depend_on_the_table(tmp_path: Path) -> None:
    rows = ["b.png,0", "a.png,1", "c.png,0"]
    _csv(tmp_path, "\n".join(["image,label", *rows]))
    first = read_records(tmp_path)
    _csv(tmp_path, "\n".join(["image,label", *reversed(rows)]))
    assert read_records(tmp_path) == first


def test_another_modality_brings_its_own_classes(tmp_path: Path) -> None:
    _touch(tmp_path, "c/a.png", "a/a.png", "b/a.png")
    toy = Modality("toy", 1, ("a", "b", "c"))
    assert [record.label for record in read_records(tmp_path, modality=toy)] == [0, 1, 2]


def test_every_layout_describes_itself() -> None:
    assert all(layout.name == name and layout.description for name, layout in LAYOUTS.items())


def test_a_folder_per_class_copy_of_the_x_rays(shared_data: Path, tmp_path: Path) -> None:
    for record in read_records(shared_data / "cxr")[::50]:
        target = tmp_path / ("normal", "tuberculosis")[record.label or 0] / record.name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(record.image, target)
    original = {record.name: record.label for record in read_records(shared_data / "cxr")}
    copies = read_records(tmp_path)
    assert copies
    assert all(original[Path(record.name).name] == record.label for record in copies)
    assert Image.open(copies[0].image).size == (256, 256)


@pytest.mark.parametrize("names", [("Training", "Testing"), ("train_set", "Test data"), ("train", "val", "test")])
def test_folders_named_after_splits_are_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    _touch(tmp_path, *(f"{name}/{label}/{name}.png" for name in names for label in ("normal", "tb")))
    folder = read_folder(tmp_path)
    assert folder.class_names == ("normal", "tuberculosis")
    expected = {"train": "train", "training": "train", "train_set": "train", "val": "val"}
    assert {record.split for record in folder.records} == {expected.get(name.casefold(), "test") for name in names}


def test_folders_named_after_splits_without_classes_are_no_data_set(tmp_path: Path) -> None:
    _touch(tmp_path, "Training/a.png", "Testing/b.png")
    with pytest.raises(DataError, match="none of the layouts"):
        read_folder(tmp_path)


@pytest.mark.parametrize("names", [("train/normal", "train/tb", "other/x"), ("normal", "tb", "test")])
def test_folders_named_after_splits_beside_others_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    _touch(tmp_path, *(f"{name}/a.png" for name in names))
    with pytest.raises(DataError, match=r"folders named after splits \((train|test)\) stand beside others"):
        read_folder(tmp_path)
    _csv(tmp_path, "image,label\n" + "".join(f"{name}/a.png,0\n" for name in names))
    assert read_folder(tmp_path).layout == "labels_csv"


def test_splits_may_lie_within_class_folders(tmp_path: Path) -> None:
    _touch(tmp_path, *(f"{label}/{split}/a.png" for label in ("normal", "tb") for split in ("train", "test")))
    assert {record.name: record.split for record in read_records(tmp_path)} == {
        f"{label}/{split}/a.png": split for label in ("normal", "tb") for split in ("train", "test")
    }
    _touch(tmp_path, "normal/other/b.png")
    with pytest.raises(DataError, match=r"splits \(test, train\) stand beside others \(other\)"):
        read_records(tmp_path)
    shutil.rmtree(tmp_path / "normal" / "other")
    _touch(tmp_path, "normal/b.png")
    with pytest.raises(DataError, match="images lie beside folders named after splits"):
        read_records(tmp_path)


def _left_out(folder: Path, **options: Any) -> dict[str, str]:
    return {entry.name: entry.reason for entry in read_folder(folder, **options).left_out}


def test_masks_are_no_images(tmp_path: Path) -> None:
    _touch(
        tmp_path, *(f"{label}/{kind}/{label}-1.png" for label in ("COVID", "Normal") for kind in ("images", "masks"))
    )
    _touch(tmp_path, "Normal/images/b.png", "Normal/images/b_mask.png", "Normal/images/unmasked.png", "COVID.xlsx")
    folder = read_folder(tmp_path)
    assert folder.class_names == ("normal", "COVID")
    assert [record.name for record in folder.records] == [
        "COVID/images/COVID-1.png",
        "Normal/images/Normal-1.png",
        "Normal/images/b.png",
        "Normal/images/unmasked.png",
    ]
    assert _left_out(tmp_path) == {
        "COVID/masks/COVID-1.png": "masks by their name",
        "Normal/masks/Normal-1.png": "masks by their name",
        "Normal/images/b_mask.png": "masks by their name",
        "COVID.xlsx": "files that are not read as images",
    }


@pytest.mark.parametrize("name", ["masks", "lung_masks", "ManualMask", "Ground truth", "annotations"])
def test_masks_beside_class_folders_are_refused(tmp_path: Path, name: str) -> None:
    _touch(tmp_path, "normal/a.png", "tb/b.png", f"{name}/a.png")
    with pytest.raises(DataError, match=f"{name} stands beside the class folders"):
        read_folder(tmp_path)


def test_montgomery_as_published_brings_its_masks(tmp_path: Path) -> None:
    _touch(tmp_path, "CXR_png/MCUCXR_0001_0.png", "CXR_png/MCUCXR_0002_1.png", "ClinicalReadings/MCUCXR_0001_0.txt")
    _touch(tmp_path, *(f"ManualMask/{side}Mask/MCUCXR_0001_0.png" for side in ("left", "right")))
    folder = read_folder(tmp_path)
    assert (folder.layout, len(folder.records)) == ("montgomery", 2)
    assert _left_out(tmp_path) == {
        "ManualMask/leftMask/MCUCXR_0001_0.png": "images that no record names",
        "ManualMask/rightMask/MCUCXR_0001_0.png": "images that no record names",
        "ClinicalReadings/MCUCXR_0001_0.txt": "files that are not read as images",
    }


def test_every_file_is_used_or_named(tmp_path: Path) -> None:
    _touch(tmp_path, "normal/a.png", "tb/b.png", "loose.png", "normal/c.heic", "tb/.hidden.png")
    _touch(tmp_path, "normal/Thumbs.db", "tb/.DS_Store", "tb/._b.png", "desktop.ini", "__MACOSX/x.png")
    (tmp_path / "elsewhere").mkdir()
    os.mkfifo(tmp_path / "tb" / "pipe.png")
    (tmp_path / "tb" / "self").symlink_to(tmp_path / "tb")
    assert _left_out(tmp_path) == {
        "loose.png": "images outside the class folders",
        "normal/c.heic": "files that are not read as images",
        "tb/.hidden.png": "hidden files",
        "tb/pipe.png": "pipes, sockets or devices",
        "tb/self": "links to a folder that they lie in",
    }


def test_links_are_followed_and_broken_ones_named(tmp_path: Path) -> None:
    data, other = tmp_path / "data", tmp_path / "other hospital"
    _touch(data, "normal/a.png", "tb/b.png")
    _touch(other, "c.png", "deep/d.png")
    (data / "tb" / "linked").symlink_to(other)
    (data / "tb" / "e.png").symlink_to(other / "c.png")
    (data / "tb" / "gone.png").symlink_to(other / "gone.png")
    (data / "normal" / "gone").symlink_to(other / "gone")
    folder = read_folder(data)
    assert [record.name for record in folder.records] == [
        "normal/a.png", "tb/b.png", "tb/e.png", "tb/linked/c.png", "tb/linked/deep/d.png",
    ]  # fmt: skip
    assert [(problem.name, problem.kind) for problem in folder.problems] == [("tb/gone.png", "broken link")]
    assert _left_out(data) == {"normal/gone": "links that lead nowhere"}


def test_names_that_are_not_utf_8_are_told(tmp_path: Path) -> None:
    _touch(tmp_path, "normal/a.png", "tb/b.png")
    os.close(os.open(os.fsencode(tmp_path / "tb") + b"/Schr\xf6der.png", os.O_CREAT))
    (problem,) = read_folder(tmp_path).problems
    assert (problem.name, problem.kind) == ("tb/Schr\\xf6der.png", "file name")
    assert "convmv" in problem.cure


@pytest.mark.parametrize(
    ("modality", "names", "unknown"),
    [
        ("xray", ("1", "2"), "2 cannot be told"),
        ("fundus", ("1", "2", "3", "4", "5"), "5 cannot be told"),
        ("fundus", ("no_dr", "mild", "worse"), "worse cannot be told"),
        ("xray", ("0", "1", "pneumonia"), "pneumonia cannot be told"),
    ],
)
def test_class_folders_whose_meaning_would_be_a_guess(
    tmp_path: Path, modality: str, names: tuple[str, ...], unknown: str
) -> None:
    _touch(tmp_path, *(f"{name}/a.png" for name in names))
    with pytest.raises(DataError, match=unknown) as caught:
        read_folder(tmp_path, modality=modality)
    assert "0 (" in str(caught.value)


def test_grades_by_the_names_of_other_publishers(tmp_path: Path) -> None:
    names = ["Healthy", "Mild DR", "moderate-npdr", "Severe DR", "Proliferate DR"]
    _touch(tmp_path, *(f"{name}/a.png" for name in names))
    labels = {record.name.split("/")[0]: record.label for record in read_records(tmp_path, modality=FUNDUS)}
    assert labels == {name: grade for grade, name in enumerate(names)}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("normal", "tb", "covid"), ("normal", "tuberculosis", "covid")),
        (("pneumonia", "NORMAL"), ("normal", "pneumonia")),
        (("viral", "Bacterial", "tb"), ("Bacterial", "tuberculosis", "viral")),
        (("a", "b", "c", "d"), ("a", "b", "c", "d")),
    ],
)
@pytest.mark.parametrize("as_table", [False, True])
def test_class_names_come_from_the_data(
    tmp_path: Path, names: tuple[str, ...], expected: tuple[str, ...], as_table: bool
) -> None:
    _touch(tmp_path, *(f"{name}/a.png" for name in names))
    if as_table:
        _csv(tmp_path, "image,label\n" + "".join(f"{name}/a.png,{name}\n" for name in names))
    folder = read_folder(tmp_path)
    assert folder.class_names == expected
    assert folder.problems == []
    by_name = {record.name.split("/")[0].casefold(): record.label for record in folder.records}
    assert [by_name[{"tuberculosis": "tb"}.get(name, name).casefold()] for name in expected] == [*range(len(expected))]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("viral pneumonia", "viral_pneumonia"),
        ("COVID-19", "COVID 19"),
        ("covid19", "COVID-19"),
        ("tb", "TB."),
        ("pleural effusion", "pleural effusion."),
    ],
)
@pytest.mark.parametrize("as_table", [False, True])
def test_spellings_of_one_class_are_refused(tmp_path: Path, first: str, second: str, as_table: bool) -> None:
    _touch(tmp_path, "normal/a.png", f"{first}/b.png", f"{second}/c.png")
    if as_table:
        _csv(tmp_path, f"image,label\nnormal/a.png,normal\n{first}/b.png,{first}\n{second}/c.png,{second}\n")
    with pytest.raises(DataError, match="differ in spaces or punctuation alone") as caught:
        read_folder(tmp_path)
    assert repr(first) in str(caught.value)
    assert repr(second) in str(caught.value)


def test_symbols_tell_classes_apart(tmp_path: Path) -> None:
    _touch(tmp_path, "HER2+/a.png", "HER2-/b.png")
    assert read_folder(tmp_path).class_names == ("HER2+", "HER2-")


NONE = ["nan", "NA", "N/A", "null", "Unknown", "?", "-", ""]


@pytest.mark.parametrize("cell", NONE)
@pytest.mark.parametrize(("first", "other"), [("0", "1"), ("normal", "pneumonia")])
def test_labels_that_say_that_there_is_none(tmp_path: Path, cell: str, first: str, other: str) -> None:
    folder = read_folder(_csv(tmp_path, f"image,label\na.png,{first}\nb.png,{other}\nc.png,{cell}\n"))
    assert [(problem.name, problem.kind) for problem in folder.problems] == [("c.png", "missing label")]
    assert folder.class_names == (("normal", "tuberculosis") if other == "1" else ("normal", "pneumonia"))


def test_a_class_folder_whose_name_says_that_there_is_no_class(tmp_path: Path) -> None:
    _touch(tmp_path, "normal/a.png", "tb/b.png", "unknown/c.png")
    with pytest.raises(DataError, match="unknown cannot be told to be a class"):
        read_folder(tmp_path)
    toy = Modality("toy", 1, ("normal", "tb", "unknown"))
    assert read_folder(tmp_path, modality=toy).class_names == ("normal", "tb", "unknown")


@pytest.mark.parametrize("cell", NONE)
def test_patients_that_say_that_there_is_none(tmp_path: Path, cell: str) -> None:
    records = read_records(_csv(tmp_path, f"image,label,patient_id\na.png,0,{cell}\nb.png,1,{cell}\n"))
    assert [record.patient_id for record in records] == ["a.png", "b.png"]


def test_a_patient_who_is_spelt_in_two_ways_is_refused(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    _csv(first, "image,label,patient_id\na.png,0,P001\nb.png,1,p001\nc.png,1,P001\nd.png,1,P002\n")
    (problem,) = read_folder(first).problems
    assert (problem.name, problem.message) == ("b.png", "patient 'p001' here, but 'P001' in a.png")
    _csv(second, "image,label,patient_id\na.png,0,p002\n")
    assert [problem.name for problem in read_folder([first, second]).problems] == ["first/b.png", "second/a.png"]


def test_a_table_may_number_classes_that_it_names(tmp_path: Path) -> None:
    rows = "image,label,label_name\na.png,0,pneumonia\nb.png,1,normal\nc.png,0,Pneumonia\n"
    folder = read_folder(_csv(tmp_path, rows))
    assert (folder.class_names, folder.problems) == (("Pneumonia", "normal"), [])
    assert [record.label for record in folder.records] == [0, 1, 0]
    folder = read_folder(_csv(tmp_path, rows + "d.png,1,pneumonia\n"))
    assert "label mismatch" in {problem.kind for problem in folder.problems}


def test_classes_that_networks_know_are_not_added_to(tmp_path: Path) -> None:
    _csv(tmp_path, "image,label\na.png,normal\nb.png,pneumonia\n")
    (problem,) = read_folder(tmp_path, modality=get_modality("xray").with_classes(("normal", "covid"))).problems
    assert (problem.name, problem.kind) == ("b.png", "label out of range")


@pytest.mark.parametrize("header", ["image,label,Label", "image,label,label ", "Image,image,label"])
def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, header: str) -> None:
    with pytest.raises(DataError, match="2 columns are called"):
        read_folder(_csv(tmp_path, f"{header}\na.png,0,1\n"))


def test_a_row_with_more_cells_than_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 3 has 3 cells, the header 2"):
        read_folder(_csv(tmp_path, "image,label\na.png,0\nb, c.png,1\n"))


def test_a_table_with_semicolons_and_numbers_with_decimals(tmp_path: Path) -> None:
    records = read_records(_csv(tmp_path, "image;label\na.png;0.0\nb.png;1.0\n"))
    assert [record.label for record in records] == [0, 1]


@pytest.mark.parametrize(
    "name", ["PatientID", "Patient ID", "patient", "subject", "Subject_Id", "MRN", "PATIENT_NUMBER"]
)
def test_a_column_that_looks_like_the_patients_is_used_and_said(tmp_path: Path, name: str) -> None:
    folder = read_folder(_csv(tmp_path, f"image,label,{name}\na.png,0,p\nb.png,1,p\nc.png,1,\n"))
    assert [record.patient_id for record in folder.records] == ["p", "p", "c.png"]
    assert [record.has_patient for record in folder.records] == [True, True, False]
    assert folder.notes == [f"Column {name!r} of labels.csv is taken to say whose the images are."]


def test_two_columns_that_look_like_the_patients(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'subject' and 'MRN' look like columns of patients"):
        read_folder(_csv(tmp_path, "image,label,subject,MRN\na.png,0,p,q\n"))


def test_eyepacs_with_endings_in_the_table(tmp_path: Path) -> None:
    _touch(tmp_path, *(f"train/{name}.jpeg" for name in ("10_left", "10_right", "13_left")))
    _table(tmp_path, "trainLabels.csv", "image,level\n10_left.jpeg,0\n10_right.jpeg,3\n13_left.jpeg,1\n")
    folder = read_folder(tmp_path, modality=FUNDUS)
    assert [(record.name, record.patient_id) for record in folder.records] == [
        ("train/10_left.jpeg", "10"),
        ("train/10_right.jpeg", "10"),
        ("train/13_left.jpeg", "13"),
    ]


def test_names_are_found_whatever_their_capitals_and_accents(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "Schröder.png")
    _touch(tmp_path, "a.PNG", decomposed, "Sub/B.JPEG")
    _csv(tmp_path, f"image,label\na.png,0\n{unicodedata.normalize('NFC', decomposed)},1\nsub/b,0\n")
    assert {record.name for record in read_records(tmp_path)} == {"a.PNG", decomposed, "Sub/B.JPEG"}
    assert _left_out(tmp_path) == {}


def test_a_name_in_another_folder_is_not_taken_for_it(tmp_path: Path) -> None:
    _touch(tmp_path, "x/a.png")
    (problem,) = read_folder(_csv(tmp_path, "image,label\ny/a,0\n")).problems
    assert (problem.name, problem.kind) == ("y/a", "absent")
    assert "did you mean x/a.png?" in problem.message


def test_a_missing_image_is_not_replaced_by_one_of_its_name_elsewhere(tmp_path: Path) -> None:
    _touch(tmp_path, "n01.png", "n02.PNG", *(f"heatmaps/n0{i}.png" for i in (1, 2, 3)))
    folder = read_folder(_csv(tmp_path, "image,label\nn01.png,0\nn02,1\nn03.png,0\n"))
    assert [record.name for record in folder.records] == ["n01.png", "n02.PNG"]
    (problem,) = folder.problems
    assert (problem.name, problem.kind) == ("n03.png", "absent")
    assert "line 4 of labels.csv" in problem.message
    assert "heatmaps/n03.png" in problem.message
    assert "heatmaps/n03.png" in _left_out(tmp_path)


@pytest.mark.parametrize(
    ("cell", "file"),
    [("a.png", " a.png"), ("'001.png", "001.png"), ("'=1.png", "'=1.png"), ("a-1.png", "a_1.jpg"), ("a .png", "a.png")],
)
def test_a_name_that_is_nearly_that_of_a_file(tmp_path: Path, cell: str, file: str) -> None:
    _touch(tmp_path, file)
    (problem,) = read_folder(_csv(tmp_path, f"image,label\n{cell},0\n")).problems
    assert problem.kind == "absent"
    assert f"did you mean {file}?" in problem.message


def test_a_backslash_parts_folders_unless_a_file_has_one_in_its_name(tmp_path: Path) -> None:
    _touch(tmp_path, "sub/a.png", "sub\\b.png")
    records = read_records(_csv(tmp_path, "image,label\nsub\\a.png,0\nsub\\b.png,1\n"))
    assert [record.name for record in records] == ["sub/a.png", "sub\\b.png"]


@pytest.mark.parametrize("folder", ["sub/..", "./", "sub/../"])
def test_the_images_folder_may_be_written_in_more_than_one_way(tmp_path: Path, folder: str) -> None:
    _touch(tmp_path, "a.png", "sub/b.png")
    _table(tmp_path, "sub/t.csv", "image,label\na.png,0\nsub/b.png,1\n")
    read = read_folder(tmp_path, {"file": "sub/../sub/t.csv", "folder": folder})
    assert ([record.name for record in read.records], read.left_out) == (["a.png", "sub/b.png"], [])


@pytest.mark.parametrize("folder", ["..", "../images", "/"])
def test_an_images_folder_outside_of_the_data_set_is_refused(tmp_path: Path, folder: str) -> None:
    with pytest.raises(DataError, match="lies outside of"):
        read_folder(_csv(_touch(tmp_path, "a.png"), "image,label\na.png,0\n"), {"folder": folder})


def test_patients_by_a_pattern_in_names(tmp_path: Path) -> None:
    names = ["NORMAL/IM-0001.jpeg", "PNEUMONIA/person1_bacteria_1.jpeg", "PNEUMONIA/person1_virus_2.jpeg"]
    _touch(tmp_path, *(f"train/{name}" for name in names))
    folder = read_folder(tmp_path, patient_pattern=r"person(\d+)_")
    assert [record.patient_id for record in folder.records] == ["train/NORMAL/IM-0001.jpeg", "1", "1"]
    assert [record.has_patient for record in folder.records] == [False, True, True]
    by_folder = read_folder(tmp_path, patient_pattern=r"/(\w+)/[^/]*$").records
    assert [record.patient_id for record in by_folder] == ["NORMAL", "PNEUMONIA", "PNEUMONIA"]
    with pytest.raises(DataError, match="patient_pattern needs one group"):
        read_folder(tmp_path, patient_pattern="person")


def test_dicom_files_of_a_table_bring_their_patients(
    tmp_path: Path, draw: Callable[..., NDArray[np.uint8]], write_dicom: Callable[..., object]
) -> None:
    for name, patient in (("a.dcm", "P1"), ("b.dcm", "P1"), ("c.dcm", ""), ("d.dcm", "P2")):
        write_dicom(tmp_path / name, draw(), PatientID=patient)
    _csv(tmp_path, "image,label,patient_id\na.dcm,0,\nb.dcm,1,\nc.dcm,1,\nd.dcm,1,own\n")
    assert [record.patient_id for record in read_records(tmp_path)] == ["P1", "P1", "c.dcm", "own"]


def test_numbers_of_a_column_of_another_name_are_told_what_they_are_taken_for(tmp_path: Path) -> None:
    _table(tmp_path, "train.csv", "Path,Pneumonia\na.png,0\nb.png,1\n")
    (note,) = read_folder(tmp_path, {"file": "train.csv", "image": "Path", "label": "Pneumonia"}).notes
    assert note.startswith("The numbers of column Pneumonia are taken for 0 (normal), 1 (tuberculosis)")
    assert "label_name" in note
