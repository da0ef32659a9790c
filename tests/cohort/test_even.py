# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from bundle.cohort.even import even_quotas, even_shares, spread_places


@pytest.mark.parametrize(
    ("passed", "quota", "shares"),
    [
        ([8, 8, 8], 3, [1, 1, 1]),
        ([8, 8, 8], 2, [1, 1, 0]),
        ([8, 1, 0, 8], 7, [3, 1, 0, 3]),
        ([2, 1], 9, [2, 1]),
        ([0, 0], 4, [0, 0]),
        ([], 4, []),
        ([5], 0, [0]),
    ],
)
def test_each_path_supplies_the_same_as_far_as_it_can(passed: list[int], quota: int, shares: list[int]) -> None:
    assert even_shares(passed, quota) == shares


@pytest.mark.parametrize(("number", "wanted", "places"), [(8, 1, [4]), (8, 2, [2, 6]), (3, 3, [0, 1, 2]), (5, 0, [])])
def test_places_are_spread(number: int, wanted: int, places: list[int]) -> None:
    assert spread_places(number, wanted) == places


def test_places_differ_and_exist() -> None:
    for number in range(1, 12):
        for wanted in range(number + 1):
            places = spread_places(number, wanted)
            assert len(set(places)) == wanted
            assert all(0 <= place < number for place in places)


@pytest.mark.parametrize(("n_images", "shares"), [(6, [2, 2, 2]), (8, [3, 3, 2]), (2, [1, 1, 0])])
def test_images_are_divided_evenly_among_classes(n_images: int, shares: list[int]) -> None:
    assert even_quotas(n_images, ["a", "b", "c"]) == dict(zip("abc", shares, strict=True))
