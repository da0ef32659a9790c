# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bundle.auditing.images import open_cohort
from bundle.auditing.preprocessing import choose_preprocessing
from bundle.auditing.releases import open_cohorts
from bundle.cohort.writer import write_cohort
from bundle.commands.assessment import Audit
from bundle.data import DataError, ImageData, get_modality
from bundle.options import validate
from tests.hospital import CohortMaker, blobs

XRAY = get_modality("xray")


def grey(first: int, n: int = 3) -> list[np.ndarray]:
    return [blobs(500 + first + i) for i in range(n)]


def sealed(folder: Path, **manifest: str) -> Path:
    images = [(n % 2, torch.from_numpy(image)) for n, image in enumerate(grey(int(manifest.pop("first", "0"))))]
    write_cohort(folder, images, ("normal", "tuberculosis"), dict(manifest), "")
    return folder


def test_one_folder_is_opened_as_before(new_cohort: CohortMaker, hospital: Path) -> None:
    folder = new_cohort("one", grey(0))
    assert open_cohorts(folder, hospital, XRAY) == open_cohort(folder, hospital, XRAY)
    assert open_cohorts([folder], hospital, XRAY) == open_cohort(folder, hospital, XRAY)


def test_images_of_all_releases_are_judged_under_names_of_their_own(new_cohort: CohortMaker, hospital: Path) -> None:
    folders = [new_cohort("a", grey(0)), new_cohort("b", grey(3, 2))]
    (folders[1] / "notes.txt").write_text("no image")
    cohort = open_cohorts(folders, hospital, XRAY)
    assert [record.name for record in cohort.records] == [
        "1/0000.png",
        "1/0001.png",
        "1/0002.png",
        "2/0000.png",
        "2/0001.png",
    ]
    assert all(record.image.is_file() for record in cohort.records)
    assert cohort.digests == tuple(
        digest for folder in folders for digest in open_cohort(folder, hospital, XRAY).digests
    )
    assert (cohort.side, cohort.sides, cohort.holds, cohort.not_judged) == (40, 1, None, ("2/notes.txt",))
    assert cohort.folder == folders[0].parent


def test_manifests_are_verified_one_by_one(hospital: Path, tmp_path: Path) -> None:
    made = {"preprocessing": "crop_histogram", "split_sha256": "a"}
    one, other = sealed(tmp_path / "one", seed="1", **made), sealed(tmp_path / "other", seed="2", first="3", **made)
    cohort = open_cohorts([one, other], hospital, XRAY)
    assert cohort.holds is True and cohort.manifest["split_sha256"] == "a" and "seed" not in cohort.manifest
    assert cohort.images_sha256 is None
    assert [images for *_, images in cohort.releases] == [
        open_cohort(folder, hospital, XRAY).images_sha256 for folder in (one, other)
    ]
    assert len({images for *_, images in cohort.releases} - {None}) == 2
    (other / "contact_sheet.png").unlink()
    altered = open_cohorts([one, other], hospital, XRAY)
    assert [images is None for *_, images in altered.releases] == [False, True]
    assert altered.holds is False and altered.manifest == {"split_sha256": "a", "preprocessing": None}


def test_releases_that_do_not_belong_together_are_refused(hospital: Path, tmp_path: Path) -> None:
    one, other = sealed(tmp_path / "one", split_sha256="a"), sealed(tmp_path / "other", split_sha256="b", first="3")
    with pytest.raises(DataError, match="different splits of the data"):
        open_cohorts([one, other], hospital, XRAY)
    for twice in ([one, one], [one, one / "images"]):
        with pytest.raises(DataError, match="Name each release once"):
            open_cohorts(twice, hospital, XRAY)


def test_image_of_two_releases_is_judged_once(
    new_cohort: CohortMaker, hospital: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labelled, plain = new_cohort("a", grey(0)), new_cohort("b", grey(2))
    (labelled / "labels.csv").write_text("image,label\n0000.png,1\n0001.png,1\n0002.png,0\n", encoding="utf-8")
    cohort = open_cohorts([labelled, plain], hospital, XRAY)
    assert [record.name for record in cohort.records][-2:] == ["2/0001.png", "2/0002.png"]
    assert "1 images are, pixel for pixel, in several releases" in caplog.text
    assert cohort.labels is None and len(cohort.sha256) == 64
    assert [(n, sha256) for _, n, sha256, _ in cohort.releases] == [
        (3, open_cohort(folder, hospital, XRAY).sha256) for folder in (labelled, plain)
    ]


def test_split_and_preprocessing_of_each_release_count(
    new_cohort: CohortMaker, hospital: Path, hospital_data: ImageData, tmp_path: Path
) -> None:
    one, other = sealed(tmp_path / "one", preprocessing="crop_histogram", split_sha256="a"), new_cohort("b", grey(3))
    for folders in ([one, other], [other, one]):
        cohort = open_cohorts(folders, hospital, XRAY)
        assert cohort.manifest["split_sha256"] == "a" and cohort.manifest["preprocessing"] is None
        with pytest.raises(DataError, match="Give --cohort_preprocessing"):
            choose_preprocessing(cohort, hospital_data, "auto", lambda *_: 0.0)
        assert choose_preprocessing(cohort, hospital_data, "none", lambda *_: 0.0)[0].preprocessing == "crop_histogram"


def test_errors_name_the_release(new_cohort: CohortMaker, hospital: Path) -> None:
    folders = [new_cohort("a", grey(0)), new_cohort("b", grey(3))]
    (folders[1] / "0000.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"Release 2, .*b: 0000\.png"):
        open_cohorts(folders, hospital, XRAY)


def test_images_are_removed_from_one_release_only(new_cohort: CohortMaker) -> None:
    folders = [str(new_cohort("a", grey(0))), str(new_cohort("b", grey(3)))]
    (problem,) = validate(Audit, {"cohort_dir": folders, "remove_flagged": True})
    assert problem.startswith("--remove_flagged writes a cohort anew and needs a single cohort_dir")
    assert not validate(Audit, {"cohort_dir": folders[:1], "remove_flagged": True})
    assert not validate(Audit, {"cohort_dir": folders, "remove_flagged": False})
