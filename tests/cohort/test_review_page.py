# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The page for reviews as a file; tests/test_review_in_browser.py opens it."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from bundle.cohort.export import export
from bundle.cohort.ledger import CohortError
from bundle.cohort.review_page import PAGE, REASONS, has_page, review_page
from bundle.cohort.writer import images_sha256, read_labels, verify_cohort
from tests.cohort.test_export import make
from tests.cohort.test_writer import change, digest, resealed

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    return make(tmp_path / "run" / "cohort")


def written(cohort: Path) -> str:
    review_page(cohort)
    return (cohort.parent / PAGE).read_text(encoding="utf-8")


def described(page: str) -> dict[str, Any]:
    """What the page says of the cohort to its script."""
    (content,) = re.findall(r'<script type="application/json" id="cohort">(.*?)</script>', page, re.DOTALL)
    return dict(json.loads(content))


def test_page_holds_every_image_and_lies_beside_the_cohort(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = digest(cohort)
    page = written(cohort)
    assert digest(cohort) == before
    assert sorted(path.name for path in cohort.parent.iterdir()) == ["cohort", PAGE]
    told, files = described(page), verify_cohort(cohort)["files"]
    assert told["images_sha256"] == images_sha256(verify_cohort(cohort))
    assert [(each["image"], each["label_name"]) for each in told["images"]] == [
        (name, label_name) for name, _, label_name in read_labels(cohort)
    ]
    pictures = re.findall(r'<script type="text/plain" class="picture">(.*?)</script>', page)
    shown = [hashlib.sha256(base64.b64decode(picture, validate=True)).hexdigest() for picture in pictures]
    assert shown == [each["sha256"] for each in told["images"]] == [files[each["image"]] for each in told["images"]]
    assert [reason for reason, _ in told["reasons"]] == list(REASONS)
    assert re.fullmatch(rf"Open {cohort.parent}/{PAGE} in a browser \(\S+ kB\), .*\n", capsys.readouterr().out)


def test_browser_may_run_and_load_nothing_that_is_not_in_the_page(cohort: Path) -> None:
    page = written(cohort)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert (rules["default-src"], rules["img-src"], rules["base-uri"]) == ("'none'", "data:", "'none'")
    for kind, pattern in (("script-src", r"<script>(.*?)</script>"), ("style-src", r"<style>(.*?)</style>")):
        (text,) = re.findall(pattern, page, re.DOTALL)
        assert rules[kind] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert not re.search(r"https?:|<link|<iframe|\bsrc=|\bon\w+=", page)


def test_same_cohort_same_page_in_whatever_formats(cohort: Path, tmp_path: Path) -> None:
    page = written(cohort)
    export(cohort, "dicom,nifti")
    assert written(cohort) == page
    assert written(make(tmp_path / "again" / "cohort")) == page
    assert written(make(tmp_path / "other" / "cohort", channels=3)) != page


def test_names_cannot_end_the_place_where_they_stand(cohort: Path) -> None:
    markup = len(re.findall("<", written(cohort)))
    image = "images/<img src=x onerror=alert(1)>&quot;.png"
    (cohort / "images" / "normal_000001.png").rename(cohort / image)
    table = (cohort / "labels.csv").read_text().replace("images/normal_000001.png", image)
    (cohort / "labels.csv").write_text(table.replace("0,normal", f'0,"{EVIL}"'))
    resealed(cohort, modality=EVIL)
    (cohort.parent / PAGE).unlink()
    page = written(cohort)
    assert len(re.findall("<", page)) == markup
    assert described(page)["images"][0]["label_name"] == EVIL
    assert described(page)["images"][0]["image"] == image


def test_cells_are_those_of_csv(cohort: Path) -> None:
    (cohort / "labels.csv").write_text((cohort / "labels.csv").read_text().replace("0,normal", "0,'=x;y"))
    resealed(cohort)
    first = described(written(cohort))["images"][0]
    assert first["label_name"] == "=x;y"
    assert first["cells"] == f'images/normal_000001.png,{first["sha256"]},"\'=x;y"'


def test_page_may_lie_elsewhere_and_is_written_again(cohort: Path, tmp_path: Path) -> None:
    review_page(cohort, tmp_path / "pages" / "a.html")
    page = (tmp_path / "pages" / "a.html").read_text(encoding="utf-8")
    (tmp_path / "pages" / "a.html").write_text(page.replace("<title>", "<title>old "), encoding="utf-8")
    review_page(cohort, tmp_path / "pages" / "a.html")
    assert (tmp_path / "pages" / "a.html").read_text(encoding="utf-8") == page
    assert not (cohort.parent / PAGE).exists()


def refusal(cohort: Path, page: Path | None = None) -> str:
    with pytest.raises(CohortError) as caught:
        review_page(cohort, page)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_that_are_no_page_of_the_cohort_are_kept(cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.html").write_text("mine")
    assert "is no page of this cohort. Name another file, as in --page" in refusal(cohort, tmp_path / "notes.html")
    assert (tmp_path / "notes.html").read_text() == "mine"
    page = written(make(cohort.parent / "second", channels=3))
    assert "is no page of this cohort" in refusal(cohort)
    assert "is no page of this cohort" in refusal(cohort, tmp_path)
    assert (cohort.parent / PAGE).read_text(encoding="utf-8") == page
    assert "would be a file in the cohort" in refusal(cohort, cohort / "images" / PAGE)


def test_cohort_that_is_not_as_its_manifest_says_gets_no_page(cohort: Path) -> None:
    change(cohort / "images" / "normal_000001.png")
    assert "normal_000001.png was changed. Only a cohort as it was" in refusal(cohort)
    assert not (cohort.parent / PAGE).exists()
    assert "beside it, what is private" in refusal(cohort.parent)


def test_page_is_known_by_its_cohort(cohort: Path, tmp_path: Path) -> None:
    manifest = verify_cohort(cohort)
    assert not has_page(manifest, cohort.parent / PAGE)
    review_page(cohort)
    assert has_page(manifest, cohort.parent / PAGE)
    assert not has_page(verify_cohort(make(tmp_path / "other", channels=3)), cohort.parent / PAGE)


def test_full_disk_names_the_page_and_leaves_nothing(cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any, **options: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError) as caught:
        review_page(cohort)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(cohort.parent / PAGE))
    assert [path.name for path in cohort.parent.iterdir()] == ["cohort"]
