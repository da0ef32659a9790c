# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bundle.auditing.assessment import Assessment
from bundle.auditing.controls import Control
from bundle.auditing.images import RealImages
from bundle.auditing.orientations import TransformedCopies
from bundle.auditing.placebo import PlaceboComparison
from bundle.auditing.resampling import Estimate
from bundle.auditing.single_images import SingleImages
from bundle.auditing.verdict import COPIES, PASSED, UNUSABLE, identical_images, verdict_of


def nearness(members: float, placebo: float, deviation: float = 0.01) -> PlaceboComparison:
    replicates = members - placebo + deviation * np.random.default_rng(0).standard_normal(1000)
    first, second = (Estimate(value, value, value, 100) for value in (members, placebo))
    return PlaceboComparison(first, second, Estimate(members - placebo, -1.0, 1.0, 100, replicates=replicates))


def flags(count: int) -> SingleImages:
    return SingleImages({}, torch.arange(100) < count, {})


RATES = {"cohort": Estimate(0.06, 0.02, 0.1, 100), "test": Estimate(0.05, 0.03, 0.08, 230)}
GOOD = Assessment(
    controls=[
        Control("planted_altered", "altered copies, found", Estimate(1.0, 0.99, 1.0, 400), "at least 90%", True),
        Control("planted, mirrored", "copies mirrored", Estimate(0.2, 0.1, 0.3, 400), "", None),
    ],
    figures={"copy_rate": RATES, "kid": {"cohort": Estimate(90.0, 60.0, 120.0, 100)}},
    per_class={},
    placebo={"copy_rate": nearness(0.06, 0.05), "reidentified": nearness(0.01, 0.02)},
    single=flags(0),
    threshold=0.9,
    transformed=TransformedCopies(copies=0, orientation=""),
    farthest=("noise of 0.1", 500.0),
    quantiles={},
)
NONE = {"train": 0, "val": 0, "test": 0}


def test_nothing_found_is_no_sign_and_no_proof() -> None:
    verdict = verdict_of(GOOD, NONE, 100)
    assert verdict.code == PASSED == 0
    assert verdict.title == "NO SIGN OF COPIES by these measures"
    assert (
        "more than held-out ones, beyond chance (copy rate 6.0% towards training images, 5.0% towards"
        in verdict.reasons[0]
    )


def test_a_cohort_too_small_for_a_placebo_says_so() -> None:
    lacking = Estimate(reason="too few", n=3)
    few = {name: PlaceboComparison(lacking, lacking, lacking) for name in GOOD.placebo}
    verdict = verdict_of(replace(GOOD, placebo=few), NONE, 3)
    assert verdict.code == PASSED
    assert "too small to ask whether it resembles training patients" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("found", "copies", "words"),
    [
        (
            replace(GOOD, placebo={**GOOD.placebo, "copy_rate": nearness(0.08, 0.05)}),
            NONE,
            "Copy rate: 8.0% towards training images, 5.0% towards as many held-out images",
        ),
        (
            replace(GOOD, placebo={**GOOD.placebo, "reidentified": nearness(0.08, 0.05)}),
            NONE,
            "8.0% towards training images, 5.0% towards as many held-out images",
        ),
        (
            replace(GOOD, single=flags(2)),
            NONE,
            "2 of 100 images are nearer to a training image, as a whole or in part",
        ),
        (GOOD, {**NONE, "val": 1}, "1 of 100 images are, pixel for pixel, images of dataset_dir (1 of val)"),
    ],
)
def test_each_sign_alone_stops_the_release(found: Assessment, copies: dict[str, int], words: str) -> None:
    verdict = verdict_of(found, copies, 100)
    assert verdict.code == COPIES
    assert len(verdict.reasons) == 1
    assert words in verdict.reasons[0]


def test_failed_control_comes_before_all_findings() -> None:
    failed = Control("planted_altered", "altered copies, found", Estimate(0.5, 0.4, 0.6, 400), "at least 90%", False)
    found = replace(GOOD, controls=[failed, *GOOD.controls], single=flags(1))
    verdict = verdict_of(found, NONE, 100)
    assert verdict.code == UNUSABLE
    assert verdict.reasons[0] == "Control failed: altered copies, found: 50.0%, required at least 90%."
    assert len(verdict.reasons) == 2
    assert len({PASSED, COPIES, UNUSABLE, 1, 2}) == 5


def test_pixel_copies_are_counted_once_where_they_are_found_first() -> None:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (6, 8, 8), dtype=torch.uint8)

    def side(numbers: list[int]) -> RealImages:
        return RealImages(pixels[numbers], torch.zeros(len(numbers)), torch.arange(len(numbers)), ())

    nearly = pixels[3].clone()
    nearly[0, 0] += 1
    cohort = torch.stack([pixels[0], pixels[0], pixels[2], nearly])
    found = identical_images(cohort, {"train": side([0, 1]), "test": side([0, 2, 3])})
    assert {role: int(is_copy.sum()) for role, is_copy in found.items()} == {"train": 2, "test": 1}
