# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import signal
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bundle.auditing.verdict import COPIES, UNUSABLE
from bundle.cohort.export import export
from bundle.cohort.ledger import CohortError
from bundle.cohort.review_page import review_page
from bundle.cohort.writer import MANIFEST, RELEASES, images_sha256, read_labels, verify_cohort
from bundle.lock import InUseError, folder_lock
from bundle.release.releasing import ARCHIVE, release
from bundle.release.review import ReviewError
from tests.cohort.test_writer import change, digest, resealed
from tests.release.conftest import ReviewMaker, audit_of

REJECTED = {"normal_000002": "unrealistic", "tuberculosis_000001": "label"}
KEPT = ["images/normal_000001.png", "images/normal_000003.png", "images/tuberculosis_000002.png"]
#: Their names in the release, which do not tell what is missing.
NAMED = ["images/normal_000001.png", "images/normal_000002.png", "images/tuberculosis_000001.png"]


def unpacked(output: Path) -> Path:
    """Unpacks a release; returns its one folder."""
    place = output.parent / f"{output.name}-unpacked"
    with zipfile.ZipFile(output / ARCHIVE) as archive:
        archive.extractall(place)
    (folder,) = place.iterdir()
    return folder


def refusal(kind: type[Exception], cohort: Path, output: Path, *given: Any, **options: Any) -> str:
    """The message of a release that is refused, and that leaves nothing."""
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")} if output.exists() else None
    with pytest.raises(kind) as caught:
        release(cohort, output, *given, **options)
    assert "\n" not in str(caught.value)
    assert ({path: path.stat().st_mtime_ns for path in output.rglob("*")} if output.exists() else None) == before
    return str(caught.value)


def test_archive_holds_a_cohort_of_the_images_that_were_not_rejected(
    cohort: Path, new_review: ReviewMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digest(cohort)
    release(cohort, tmp_path / "out", new_review(**REJECTED))
    assert digest(cohort) == before
    folder = unpacked(tmp_path / "out")
    manifest = verify_cohort(folder)
    assert [name for name, *_ in read_labels(folder)] == NAMED
    assert set(digest(folder)) == {*NAMED, "labels.csv", "contact_sheet.png", "datasheet.md", MANIFEST}
    assert [digest(folder)[name] for name in NAMED] == [before[name] for name in KEPT]
    assert folder.name == f"release-{images_sha256(manifest)[:10]}"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [ARCHIVE]
    shown = capsys.readouterr().out
    assert f"Passed its audit: {cohort.parent / 'audit'}\n3 of 5 images: 3 accepted, 2 rejected (unr" in shown
    assert re.search(rf"The release: {tmp_path}/out/release\.zip \(\S+ kB\), SHA-256 [0-9a-f]{{64}}\n", shown)


def test_manifest_and_datasheet_say_what_was_reviewed_and_audited_and_nothing_in_reviewers_own_words(
    cohort: Path, new_review: ReviewMaker, tmp_path: Path
) -> None:
    whole = images_sha256(verify_cohort(cohort))
    release(cohort, tmp_path / "out", new_review(**REJECTED))
    folder = unpacked(tmp_path / "out")
    manifest = verify_cohort(folder)
    (entry,) = manifest[RELEASES]
    assert (entry["images"], entry["left_out"], entry["images_sha256"]) == (5, 2, whole)
    assert entry["review"] == {
        "classes": {
            "normal": {"accepted": 2, "rejected": 1, "not_reviewed": 0},
            "tuberculosis": {"accepted": 1, "rejected": 1, "not_reviewed": 0},
        },
        "reasons": {"unrealistic": 1, "label": 1},
        "reviewers": 1,
    }
    assert entry["audit"]["title"] == "NO SIGN OF COPIES"
    assert manifest["gate"]["normal"] == {"images": 2, "judged": 9, "passed": 6}
    sheet = (folder / "datasheet.md").read_text(encoding="utf-8")
    assert "**Verdict 0: NO SIGN OF COPIES.** No image is nearer than chance allows; &lt;b&gt;all" in sheet
    assert "real images: 20 test of 19 patients, 80 train of 70 patients. Of 1 required controls" in sheet
    assert "| copy rate | 40.0% [20.0%, 60.0%] |" in sheet
    assert "was not repeated for the 3 that are here" in sheet
    assert sheet.endswith("# Datasheet of the whole\n")
    everything = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert not re.search(rb"Miller|Dr\. No|" + str(tmp_path).encode(), everything)


def test_contact_sheet_shows_none_that_was_rejected(cohort: Path, new_review: ReviewMaker, tmp_path: Path) -> None:
    release(cohort, tmp_path / "all", new_review())
    release(
        cohort,
        tmp_path / "some",
        new_review(normal_000001="other", normal_000002="other", tuberculosis_000001=""),
        unreviewed=True,
    )
    sheets = [unpacked(tmp_path / name) / "contact_sheet.png" for name in ("all", "some")]
    assert sheets[0].read_bytes() == (cohort / "contact_sheet.png").read_bytes()
    with Image.open(sheets[0]) as whole, Image.open(sheets[1]) as part:
        assert part.width < whole.width


def test_same_input_same_bits_and_formats_of_the_cohort_do_not_matter(
    cohort: Path, new_review: ReviewMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    review = new_review(**REJECTED)
    release(cohort, tmp_path / "one", review)
    export(cohort, "nifti")
    capsys.readouterr()
    for _ in range(2):
        release(cohort, tmp_path / "two", review, cohort.parent / "audit", formats="png")
        assert (tmp_path / "one" / ARCHIVE).read_bytes() == (tmp_path / "two" / ARCHIVE).read_bytes()
    assert "The release, which was there already: " in capsys.readouterr().out


@pytest.mark.parametrize("formats", [None, "dicom,nifti", ["nifti", "dicom"]])
def test_formats_are_those_asked_for_or_those_of_the_cohort(
    cohort: Path, new_review: ReviewMaker, tmp_path: Path, formats: Any
) -> None:
    export(cohort, "dicom,nifti")
    release(cohort, tmp_path / "out", new_review(**REJECTED), formats=formats)
    folder = unpacked(tmp_path / "out")
    files = verify_cohort(folder)["files"]
    assert len(files) == 3 * len(KEPT) + 3
    whole = digest(cohort)
    for name in ("dicom/{}.dcm", "nifti/{}.nii.gz"):
        for old, new in zip(KEPT, NAMED, strict=True):
            assert files[name.format(Path(new).stem)] == whole[name.format(Path(old).stem)]


def test_file_in_another_format_is_made_of_the_audited_pixels(
    cohort: Path, new_review: ReviewMaker, tmp_path: Path
) -> None:
    export(cohort, "dicom")
    genuine = digest(cohort)["dicom/normal_000001.dcm"]
    change(cohort / "dicom" / "normal_000001.dcm")
    resealed(cohort)
    release(cohort, tmp_path / "out", new_review())
    assert verify_cohort(unpacked(tmp_path / "out"))["files"]["dicom/normal_000001.dcm"] == genuine


def test_cohort_without_a_complete_review_is_refused(cohort: Path, new_review: ReviewMaker, tmp_path: Path) -> None:
    message = refusal(ReviewError, cohort, tmp_path / "out")
    assert message.startswith(
        f"{cohort} was not reviewed. Write its page (run review_page of configs/release.json), rev"
    )
    review_page(cohort)
    message = refusal(ReviewError, cohort, tmp_path / "out", new_review(normal_000003="", tuberculosis_000001=""))
    assert message == (
        f"{tmp_path}/review.csv has no decision about 2 of 5 images, such as images/normal_000003.png. Open "
        f"{cohort.parent}/review.html, review every image, and name what it saves: --review review.csv. Without: "
        "--unreviewed True"
    )


def test_unreviewed_images_leave_if_asked_for_and_the_datasheet_says_so(
    cohort: Path, new_review: ReviewMaker, tmp_path: Path
) -> None:
    release(cohort, tmp_path / "none", unreviewed=True)
    folder = unpacked(tmp_path / "none")
    assert len(read_labels(folder)) == 5
    assert "**Nobody reviewed the images" in (folder / "datasheet.md").read_text(encoding="utf-8")
    release(cohort, tmp_path / "some", new_review(normal_000001="", **REJECTED), unreviewed=True)
    folder = unpacked(tmp_path / "some")
    assert [name for name, *_ in read_labels(folder)] == NAMED
    assert "**Only 4 of 5 images were reviewed by one person.**" in (folder / "datasheet.md").read_text("utf-8")


def test_review_that_leaves_nothing_is_refused(cohort: Path, new_review: ReviewMaker, tmp_path: Path) -> None:
    every = dict.fromkeys((Path(name).stem for name, *_ in read_labels(cohort)), "other")
    assert "rejects every image" in refusal(CohortError, cohort, tmp_path / "out", new_review(**every))


def test_class_whose_images_are_all_rejected_is_gone(cohort: Path, new_review: ReviewMaker, tmp_path: Path) -> None:
    release(cohort, tmp_path / "out", new_review(tuberculosis_000001="label", tuberculosis_000002="label"))
    assert verify_cohort(unpacked(tmp_path / "out"))["gate"]["tuberculosis"]["images"] == 0


@pytest.mark.parametrize("code", [COPIES, UNUSABLE])
def test_cohort_that_failed_its_audit_is_refused_reviewed_or_not(
    cohort: Path, new_review: ReviewMaker, tmp_path: Path, code: int
) -> None:
    audit = audit_of(cohort.parent / "audit", cohort, code)
    message = refusal(CohortError, cohort, tmp_path / "out", new_review(), audit)
    assert f"The audit in {audit} does not clear the cohort" in message
    assert "does not clear" in refusal(CohortError, cohort, tmp_path / "out", unreviewed=True)


def test_cohort_edited_after_its_audit_is_refused(cohort: Path, new_review: ReviewMaker, tmp_path: Path) -> None:
    change(cohort / KEPT[0])
    assert f"{KEPT[0]} was changed. Only a cohort as it was" in refusal(CohortError, cohort, tmp_path / "out")
    resealed(cohort)
    message = refusal(CohortError, cohort, tmp_path / "out", new_review(), cohort.parent / "audit")
    assert "judged other images or labels than the cohort has now" in message


def test_results_of_an_earlier_version_are_refused(cohort: Path, new_review: ReviewMaker, tmp_path: Path) -> None:
    file = cohort.parent / "audit" / "results.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    del content["placebo"]
    file.write_text(json.dumps(content), encoding="utf-8")
    assert "Run the audit again" in refusal(CohortError, cohort, tmp_path / "out", new_review())


def test_two_releases_do_not_share_a_folder(cohort: Path, new_review: ReviewMaker, tmp_path: Path) -> None:
    release(cohort, tmp_path / "out", new_review())
    message = refusal(CohortError, cohort, tmp_path / "out", new_review(**REJECTED))
    assert message.startswith(f"{tmp_path}/out/release.zip is another release: of another cohort, review, audit or")
    with folder_lock(tmp_path / "out"):
        assert "another run adds files to it" in refusal(InUseError, cohort, tmp_path / "out", new_review())


def test_release_does_not_lie_in_the_cohort(cohort: Path, new_review: ReviewMaker) -> None:
    for place in (cohort, cohort / "images"):
        assert "would be a file in the cohort" in refusal(CohortError, cohort, place, new_review())
    assert "beside it, what is private" in refusal(CohortError, cohort.parent, cohort.parent / "out")


@pytest.mark.parametrize("part", ["bundle.release.archive.zipfile.ZipFile.writestr", "pathlib.Path.write_bytes"])
def test_full_disk_names_the_archive_and_leaves_nothing(
    cohort: Path, new_review: ReviewMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    review = new_review()

    def full(*given: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "out").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(part, full)
        with pytest.raises(OSError) as caught:
            release(cohort, tmp_path / "out", review)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "out" / ARCHIVE))
    assert list((tmp_path / "out").iterdir()) == []
    release(cohort, tmp_path / "out", review)
    assert (tmp_path / "out" / ARCHIVE).exists()


def release_and_die(cohort: Path, output: Path, review: Path) -> None:
    def die(*given: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    zipfile.ZipFile.testzip = die  # type: ignore[assignment, method-assign]
    release(cohort, output, review)


@pytest.mark.skipif(os.name != "posix", reason="needs processes that are forked")
def test_killed_release_leaves_no_archive_and_is_repeated(
    cohort: Path, new_review: ReviewMaker, tmp_path: Path
) -> None:
    review, output = new_review(), tmp_path / "out"
    process = multiprocessing.get_context("fork").Process(target=release_and_die, args=(cohort, output, review))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    left = [path.name for path in output.iterdir()]
    assert len(left) == 2
    assert all(name.startswith(".release") for name in left)
    release(cohort, output, review)
    assert [path.name for path in output.iterdir()] == [ARCHIVE]


def test_rejected_as_a_person_is_a_warning(
    cohort: Path, new_review: ReviewMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release(cohort, tmp_path / "out", new_review(normal_000001="identifiable"))
    assert "1 of the rejected images might show or name a real person." in capsys.readouterr().out


def test_release_can_be_audited_reviewed_and_released_again(
    cohort: Path, new_review: ReviewMaker, tmp_path: Path
) -> None:
    release(cohort, tmp_path / "first", new_review(normal_000001="label"))
    folder = unpacked(tmp_path / "first")
    audit = audit_of(tmp_path / "second audit", folder, images=4)
    review = new_review(folder=folder, normal_000002="other")
    release(folder, tmp_path / "second", review, audit)
    manifest = verify_cohort(unpacked(tmp_path / "second"))
    assert [entry["left_out"] for entry in manifest[RELEASES]] == [1, 1]
    assert [entry["images"] for entry in manifest[RELEASES]] == [5, 4]
