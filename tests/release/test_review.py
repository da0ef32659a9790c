# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from bundle.cohort.writer import read_labels, verify_cohort
from bundle.data import DataError
from bundle.release.review import Review, ReviewError, read_review
from tests.cohort.test_export import make
from tests.release.conftest import ReviewMaker

FIRST = "images/normal_000001.png"


def read(file: Path, cohort: Path) -> Review:
    return read_review(file, cohort, verify_cohort(cohort))


def edit(file: Path, old: str, new: str) -> Path:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    return file


def test_decisions_are_read_by_image(cohort: Path, new_review: ReviewMaker) -> None:
    found = read(new_review(normal_000001="", normal_000002="label", tuberculosis_000002="other"), cohort)
    assert found.accepted == {"images/normal_000003.png", "images/tuberculosis_000001.png"}
    assert found.rejected == {"images/normal_000002.png": "label", "images/tuberculosis_000002.png": "other"}
    assert found.reviewers == 1
    assert found.undecided([name for name, *_ in read_labels(cohort)]) == [FIRST]


def test_free_text_is_not_kept(cohort: Path, new_review: ReviewMaker) -> None:
    found = read(new_review(normal_000001="label"), cohort)
    assert not re.search("Miller|No", str(found))


def test_spreadsheets_may_save_it_and_other_programs_may_leave_columns_out(
    cohort: Path, new_review: ReviewMaker
) -> None:
    file = new_review(normal_000001="label")
    expected = read(file, cohort)
    text = file.read_text(encoding="utf-8").replace(",", ";").replace("\n", "\r\n")
    file.write_text(f"\ufeff{text}", encoding="utf-8", newline="")
    assert read(file, cohort) == expected
    lines = [line.rsplit(";", 2)[0] for line in text.splitlines()]
    file.write_text("\n".join([lines[0], *reversed(lines[1:])]), encoding="utf-8")
    assert read(file, cohort) == Review(expected.accepted, expected.rejected, 0)


def test_rows_may_be_missing(cohort: Path, new_review: ReviewMaker) -> None:
    file = new_review()
    file.write_text("\n".join(file.read_text(encoding="utf-8").splitlines()[:3]), encoding="utf-8")
    assert len(read(file, cohort).accepted) == 2


def test_review_of_another_cohort_is_refused_though_its_images_have_the_same_names(
    cohort: Path, new_review: ReviewMaker, tmp_path: Path
) -> None:
    other = make(tmp_path / "other" / "cohort", channels=3)
    file = new_review(folder=other)
    with pytest.raises(ReviewError) as caught:
        read(file, cohort)
    assert str(caught.value).startswith(
        f"{file} is a review of another cohort than {cohort}: in 5 of 5 rows, the image, its SHA-256 or its class is "
        f"none of the cohort's, the first in line 2 ({FIRST}). Save it anew from the page of this cohort"
    )


@pytest.mark.parametrize(
    ("old", "new"), [(FIRST, "images/normal_000009.png"), (",normal,", ",tuberculosis,"), (FIRST, "\x1b[2J")]
)
def test_row_of_another_image_or_label_is_refused(cohort: Path, new_review: ReviewMaker, old: str, new: str) -> None:
    with pytest.raises(ReviewError, match=r"another cohort .* in 1 of 5 rows.* the first in line 2 ") as caught:
        read(edit(new_review(), old, new), cohort)
    assert "\x1b" not in str(caught.value)


def twice(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join([*lines, lines[1]]), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (twice, f"two rows for {FIRST}, in lines 2 and 7. Keep one."),
        (lambda file: edit(file, "accept", "yes"), "line 2: decision is 'yes'. Write accept, reject, or nothing"),
        (
            lambda file: edit(file, ",accept,", ",reject,"),
            "line 2: reason of the rejected image is ''. Write one of unr",
        ),
        (lambda file: edit(file, "accept,", "reject,ugly"), "reason of the rejected image is 'ugly'. Write one of"),
        (lambda file: edit(file, "accept,", "accept,label"), "has a reason, 'label', and is not rejected"),
        (lambda file: edit(file, "accept,", ",label"), "has a reason, 'label', and is not rejected"),
        (lambda file: edit(file, "decision", "verdict"), "has no column decision, so it is no review of a cohort"),
        (lambda file: file.write_bytes(b""), "has no column image"),
    ],
)
def test_mistakes_are_named_with_their_line(
    cohort: Path, new_review: ReviewMaker, spoil: Callable[[Path], object], words: str
) -> None:
    file = new_review()
    spoil(file)
    with pytest.raises(ReviewError, match=re.escape(words)) as caught:
        read(file, cohort)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b'image,sha256\n"a'])
def test_file_that_is_no_table_is_refused(cohort: Path, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "review.csv"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"review\.csv: "):
        read(file, cohort)
