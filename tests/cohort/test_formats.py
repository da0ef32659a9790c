# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from bundle.cohort.formats import FORMATS, chosen_formats, formats_of, formats_problem
from bundle.cohort.ledger import CohortError


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ("png", ("png",)),
        ("dicom", ("png", "dicom")),
        ("nifti, dicom", ("png", "dicom", "nifti")),
        (["nifti"], ("png", "nifti")),
        (("png", "dicom", "dicom"), ("png", "dicom")),
    ],
)
def test_png_is_always_one_of_the_formats(given: Any, chosen: tuple[str, ...]) -> None:
    assert chosen_formats(given) == chosen
    assert formats_problem(given) is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("dcm", r"nifti, not 'dcm'\. The nearest is dicom\. PNG files are always"),
        (["png", "NIfTI"], "not 'NIfTI'. The nearest is nifti"),
        ("png,", "not 'png,'"),
        ("", "as in dicom,nifti"),
        ([], r"not \[\]"),
        (None, "not None"),
        (3, "not 3"),
        ([["png"]], r"not \['png'\]"),
    ],
)
def test_unknown_formats_are_refused_with_the_nearest(given: Any, words: str) -> None:
    with pytest.raises(CohortError, match=f"^formats must name some of .*{words}"):
        chosen_formats(given)


def test_formats_are_told_by_their_folders() -> None:
    assert formats_of(["labels.csv", "dicom", "images/a.png", "nifti/a.nii.gz"]) == ("png", "nifti")
    assert FORMATS["nifti"].names(["images/a.b_000001.png"]) == {"nifti/a.b_000001.nii.gz"}
