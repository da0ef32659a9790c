# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bundle.auditing.images import RealData, RealImages, open_cohort, read_pixels
from bundle.auditing.preprocessing import choose_preprocessing
from bundle.cohort.export import export
from bundle.cohort.writer import write_cohort
from bundle.data import DataError, ImageData, get_modality, open_dataset
from tests.cohort.test_writer import resealed
from tests.hospital import CohortMaker, blobs

XRAY = get_modality("xray")


def grey(n: int = 3) -> list[np.ndarray]:
    return [blobs(500 + i) for i in range(n)]


def test_any_folder_of_images_is_a_cohort(new_cohort: CohortMaker, hospital: Path) -> None:
    folder = new_cohort("plain", grey())
    (folder / "deeper").mkdir()
    Image.fromarray(blobs(9)).convert("RGB").save(folder / "deeper" / "grey_as_rgb.jpg", quality=95)
    (folder / "notes.txt").write_text("no image")
    cohort = open_cohort(folder, hospital, XRAY)
    assert [record.name for record in cohort.records] == ["0000.png", "0001.png", "0002.png", "deeper/grey_as_rgb.jpg"]
    assert cohort.labels is None
    assert (cohort.side, cohort.sides, cohort.manifest) == (40, 1, {})


def test_labels_come_from_a_csv_or_from_folders(new_cohort: CohortMaker, hospital: Path, tmp_path: Path) -> None:
    folder = new_cohort("csv", grey())
    (folder / "labels.csv").write_text("image,label\n0000.png,1\n0001.png,tb\n0002.png,normal\n", encoding="utf-8")
    labels = open_cohort(folder, hospital, XRAY).labels
    assert labels is not None
    assert labels.tolist() == [1, 1, 0]
    for name in ("normal", "tuberculosis"):
        (tmp_path / "by_class" / name).mkdir(parents=True)
        Image.fromarray(blobs(1)).save(tmp_path / "by_class" / name / "0.png")
    labels = open_cohort(tmp_path / "by_class", hospital, XRAY).labels
    assert labels is not None
    assert labels.tolist() == [0, 1]


def test_content_hash_forgets_names(new_cohort: CohortMaker, hospital: Path) -> None:
    one, other = new_cohort("one", grey()), new_cohort("other", grey()[::-1])
    hashes = {open_cohort(folder, hospital, XRAY).sha256 for folder in (one, other)}
    assert len(hashes) == 1
    assert open_cohort(new_cohort("less", grey(2)), hospital, XRAY).sha256 not in hashes


def test_everything_that_is_wrong_is_listed_at_once(new_cohort: CohortMaker, hospital: Path) -> None:
    red = np.zeros((40, 40, 3), np.uint8)
    red[..., 0] = blobs(2)
    folder = new_cohort("bad", [blobs(1), red, blobs(3)[:20, :20]])
    (folder / "cut.png").write_bytes((folder / "0000.png").read_bytes()[:200])
    with pytest.raises(DataError) as error:
        open_cohort(folder, hospital, XRAY)
    text = str(error.value)
    assert "0001.png: is in colour, where the modality has one channel" in text
    assert "0002.png: 20 x 20 pixels show nobody. Give images of at least 32 pixels" in text
    assert "cut.png" in text
    assert "0000.png" not in text
    colour = replace(XRAY, channels=3)
    with pytest.raises(DataError, match="shows no colour, where the modality has three channels"):
        open_cohort(new_cohort("grey", grey(1)), hospital, colour)


def test_extra_images_are_told_from_those_of_train(tmp_path: Path) -> None:
    lines = ["image,label,patient_id,split"]
    splits = ["extra", "train", "train", "extra", *["train"] * 16, *["val"] * 10, *["test"] * 10]
    for i, split in enumerate(splits):
        Image.fromarray(blobs(700 + i)).save(tmp_path / f"{i:02d}.png")
        lines.append(f"{i:02d}.png,{i % 2},{'q' if i in (1, 4) else f'p{i}'},{split}")
    (tmp_path / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    real = RealData(open_dataset(tmp_path, tmp_path.with_name("output"), resolution=32))
    train = real.sides["train"]
    assert [train.records[i].name for i in (0, 3)] == ["00.png", "03.png"]
    assert real.own.tolist() == [1, 2, *range(4, 20)]
    part = train.part(real.own)
    assert [record.name for record in part.records[:3]] == ["01.png", "02.png", "04.png"]
    assert torch.equal(part.pixels, train.pixels[real.own])
    assert part.patients.tolist()[:4] == [0, 1, 0, 2]
    assert part.patients.unique().tolist() == list(range(17))
    assert part.labels.tolist()[:3] == [1, 0, 0]
    assert real.content()["extra_images"] == 2


def test_folders_that_are_no_cohort_are_refused(new_cohort: CohortMaker, hospital: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no image"):
        open_cohort(new_cohort("empty", []), hospital, XRAY)
    with pytest.raises(DataError, match="is the folder of the real images"):
        open_cohort(hospital, hospital, XRAY)
    with pytest.raises(DataError, match="is no folder"):
        open_cohort(tmp_path / "nowhere", hospital, XRAY)
    (tmp_path / "run" / "cohort").mkdir(parents=True)
    (tmp_path / "run" / "cohort" / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"Name .*run/cohort"):
        open_cohort(tmp_path / "run", hospital, XRAY)


def with_manifest(folder: Path, manifest: dict[str, Any]) -> Path:
    images = [(label, torch.from_numpy(blobs(label).copy())) for label in (0, 1)]
    write_cohort(folder, images, ("normal", "tuberculosis"), manifest, "# Datasheet\n")
    return folder


def test_a_manifest_is_relied_on_only_where_it_holds(
    hospital: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = with_manifest(tmp_path / "cohort", {"split_sha256": "mine"})
    cohort = open_cohort(folder, hospital, XRAY)
    assert (cohort.holds, cohort.manifest["split_sha256"], len(cohort.records)) == (True, "mine", 2)
    assert cohort.not_judged == ("contact_sheet.png", "datasheet.md", "labels.csv", "manifest.json")
    text = (folder / "manifest.json").read_text(encoding="utf-8")
    (folder / "manifest.json").write_text(text.replace("mine", "other"), encoding="utf-8")
    with pytest.raises(DataError, match=r"contact_sheet\.png: shows many images, and the manifest.*does not hold"):
        open_cohort(folder, hospital, XRAY)
    (folder / "contact_sheet.png").unlink()
    cohort = open_cohort(folder, hospital, XRAY)
    assert (cohort.holds, cohort.manifest) == (False, {})
    assert "The manifest is not relied on." in caplog.text


def test_further_formats_of_a_cohort_are_compared_with_its_images_and_not_judged_again(
    hospital: Path, tmp_path: Path
) -> None:
    folder = with_manifest(tmp_path / "cohort", {})
    before = open_cohort(folder, hospital, XRAY)
    export(folder, "dicom,nifti")
    after = open_cohort(folder, hospital, XRAY)
    assert (after.records, after.digests, after.not_judged) == (before.records, before.digests, before.not_judged)
    assert after.holds
    # A maker who shows other pictures in them, with a manifest that goes with them.
    (folder / "dicom" / "normal_000001.dcm").write_bytes((folder / "dicom" / "tuberculosis_000001.dcm").read_bytes())
    (folder / "nifti" / "normal_000001.nii.gz").write_bytes(b"no image")
    resealed(folder)
    with pytest.raises(DataError) as error:
        open_cohort(folder, hospital, XRAY)
    assert [problem.name for problem in error.value.problems] == [
        "dicom/normal_000001.dcm",
        "nifti/normal_000001.nii.gz",
    ]
    assert "does not show the pixels of normal_000001.png, which would be judged in its place" in str(error.value)
    (folder / "dicom" / "normal_000001.dcm").unlink()
    with pytest.raises(DataError, match=r"tuberculosis_000001\.dcm: lies in the cohort, but labels\.csv does not list"):
        open_cohort(folder, hospital, XRAY)


def test_every_file_of_a_cohort_is_judged_named_or_refused(new_cohort: CohortMaker, hospital: Path) -> None:
    folder = new_cohort("files", grey())
    rows = "image,label\n0000.png,1\n0001.png,0\n"
    (folder / "labels.csv").write_text(rows, encoding="utf-8")
    with pytest.raises(DataError, match=r"0002\.png: lies in the cohort, but labels\.csv does not list it"):
        open_cohort(folder, hospital, XRAY)
    (folder / "labels.csv").write_text(rows + "0002.png,1\n", encoding="utf-8")
    (folder / "README.md").write_text("{}", encoding="utf-8")
    cohort = open_cohort(folder, hospital, XRAY)
    assert len(cohort.records) == 3
    assert cohort.not_judged == ("README.md", "labels.csv")
    Image.fromarray(blobs(3)).save(folder / "contact_sheet.png")
    with pytest.raises(DataError, match=r"contact_sheet\.png: lies in the cohort"):
        open_cohort(folder, hospital, XRAY)
    (folder / "contact_sheet.png").unlink()
    for name in ("._0000.png", "Thumbs.db", "__MACOSX/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(blobs(4)).save(folder / name, "PNG")
        with pytest.raises(DataError, match=rf"{re.escape(name)}: may hold pictures, and is not judged"):
            open_cohort(folder, hospital, XRAY)
        (folder / name).unlink()
    (folder / "more.npz").write_bytes(b"PK\x03\x04\x00")
    (folder / "lost.tiff").symlink_to("nowhere.tiff")
    (folder / "lost.png").symlink_to("nowhere.png")
    (folder / ".hidden").mkdir()
    Image.fromarray(blobs(4)).save(folder / ".hidden" / "0.png")
    os.mkfifo(folder / "pipe")
    with pytest.raises(DataError) as error:
        open_cohort(folder, hospital, XRAY)
    assert {problem.name for problem in error.value.problems} == {
        "more.npz", "lost.tiff", "lost.png", ".hidden/0.png", "pipe",
    }  # fmt: skip


def test_folders_of_other_names_than_the_classes_give_no_labels(hospital: Path, tmp_path: Path) -> None:
    for name in ("batch 1", "batch 2"):
        (tmp_path / "batches" / name).mkdir(parents=True)
        Image.fromarray(blobs(1)).save(tmp_path / "batches" / name / "0.png")
    cohort = open_cohort(tmp_path / "batches", hospital, XRAY)
    assert (len(cohort.records), cohort.labels) == (2, None)


def test_pixels_are_those_of_a_released_file(new_cohort: CohortMaker) -> None:
    plain = replace(XRAY, preprocessing="plain")
    folder = new_cohort("exact", grey(2))
    pixels = read_pixels(sorted(folder.iterdir()), plain, 40, "images")
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, torch.from_numpy(np.stack(grey(2))))
    assert read_pixels(sorted(folder.iterdir()), replace(plain, channels=3), 32, "images").shape == (2, 32, 32, 3)


def test_real_images_know_their_patients(hospital_data: ImageData) -> None:
    train = RealImages.load(hospital_data, ("train", "extra"))
    assert train.pixels.shape == (60, 32, 32)
    assert len(train.patients.unique()) == 44
    assert [record.patient_id for record in train.records] == [
        train.records[int((train.patients == patient).nonzero()[0])].patient_id for patient in train.patients
    ]
    with pytest.raises(DataError, match="has no extra images"):
        RealImages.load(hospital_data, "extra")


def test_data_set_without_test_images_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "no_test"
    folder.mkdir()
    rows = ["image,label,split"]
    for number in range(40):
        Image.fromarray(blobs(number)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{number % 2},{'val' if number % 4 > 1 else 'train'}")
    (folder / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(DataError, match="none in test"):
        open_dataset(folder, tmp_path / "out", resolution=32)


def mean_difference(x: torch.Tensor, y: torch.Tensor) -> float:
    """Compares the mean images of two sets: enough to tell cropped from whole."""
    return float((x.mean(0) - y.mean(0)).abs().mean())


def test_preprocessing_is_settled_by_the_option_the_manifest_or_the_looks(
    new_cohort: CohortMaker, hospital: Path, hospital_data: ImageData, tmp_path: Path
) -> None:
    records = hospital_data.records("train")
    as_filed = new_cohort("filed", [np.asarray(Image.open(record.image)) for record in records])
    seen = read_pixels([record.image for record in records], XRAY, 32, "images").numpy()
    as_seen = new_cohort("seen", list(seen))

    def settle(folder: Path, chosen: str = "auto") -> tuple[str, str]:
        cohort = open_cohort(folder, hospital, XRAY)
        preset, words = choose_preprocessing(cohort, hospital_data, chosen, mean_difference)
        return preset.preprocessing, words

    assert settle(as_filed)[0] == "crop_histogram"
    assert settle(as_seen)[0] == "plain"
    assert "look more like" in settle(as_seen)[1]
    assert settle(as_filed, "applied")[0] == "plain"
    assert settle(as_seen, "none")[0] == "crop_histogram"
    described = with_manifest(tmp_path / "described", {"preprocessing": "crop_histogram"})
    assert settle(described) == ("plain", "as the cohort's manifest says")
    untreated = hospital_data.with_preprocessing("plain")
    cohort = open_cohort(as_seen, hospital, XRAY)
    assert choose_preprocessing(cohort, untreated, "auto", mean_difference)[0].preprocessing == "plain"
