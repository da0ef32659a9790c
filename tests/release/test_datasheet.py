# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from bundle.release.datasheet import release_datasheet

CLASSES = {
    "normal": {"accepted": 2, "rejected": 1, "not_reviewed": 0},
    "<b>*x*": {"accepted": 1, "rejected": 1, "not_reviewed": 0},
}


def text(classes: dict[str, dict[str, int]] = CLASSES, judged: int = 5, **review: Any) -> str:
    left_out = sum(counts["rejected"] for counts in classes.values())
    images = sum(sum(counts.values()) for counts in classes.values())
    reasons = {"label": left_out} if left_out else {}
    told = {"classes": classes, "reasons": reasons, "reviewers": 1, **review}
    entry = {"images": images, "left_out": left_out, "review": told, "audit": {"images": judged}}
    return release_datasheet(entry, "**Verdict 0.**", "# The datasheet of the whole\n")


def test_numbers_of_the_review_stand_by_class_and_reason() -> None:
    sheet = text()
    assert sheet.startswith("# Datasheet of a release: 3 images of a synthetic cohort\n")
    assert "Each of the 5 images was looked at by one person." in sheet
    assert "Why: shows another class than its label: 2." in sheet
    assert "| normal | 3 | 2 | 1 | 0 | 2 |" in sheet
    assert "| &lt;b&gt;\\*x\\* | 2 | 1 | 1 | 0 | 1 |" in sheet
    assert "| all | 5 | 3 | 2 | 0 | 3 |" in sheet
    assert "**Verdict 0.**" in sheet
    assert sheet.endswith("# The datasheet of the whole\n")


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        (
            {"accepted": 0, "rejected": 0, "not_reviewed": 5},
            "**Nobody reviewed the images before they were released.**",
        ),
        ({"accepted": 2, "rejected": 1, "not_reviewed": 2}, "**Only 3 of 5 images were reviewed by 2 people.**"),
        ({"accepted": 5, "rejected": 0, "not_reviewed": 0}, "Each of the 5 images was looked at by 2 people."),
    ],
)
def test_it_says_who_looked_at_how_many(counts: dict[str, int], words: str) -> None:
    assert words in text({"normal": counts}, reviewers=2)


def test_it_says_what_an_audit_of_the_whole_says_of_a_part() -> None:
    part = text()
    assert "was not repeated for the 3 that are here" in part
    assert "a share of images is at most 1.67 times as high here" in part
    whole = {"normal": {"accepted": 5, "rejected": 0, "not_reviewed": 0}}
    assert "The audit judged exactly these images" in text(whole)
    assert "judged these images together with other releases, 9 images in all" in text(whole, judged=9)
    assert "at most 3 times as high here" in text(judged=9)


def test_images_that_may_show_a_person_are_a_warning_about_the_rest() -> None:
    assert "**2 of the rejected images might show or name a real person" in text(reasons={"identifiable": 2})
    assert "real person" not in text()
