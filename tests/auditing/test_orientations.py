# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bundle.auditing.orientations import ORIENTATIONS, UPRIGHT, TransformedCopies, find_transformed_copies
from bundle.figures import from_uint8, to_uint8

DISGUISES = [name for name in ORIENTATIONS if name not in UPRIGHT]


def people(first: int, n: int, channels: int = 1) -> Tensor:
    """Images that have a head above and a dark edge, as all of a modality look similar, and blobs of their own."""
    images = []
    for number in range(first, first + n):
        own = np.random.default_rng(number).integers(0, 120, (6, 6, 3), dtype=np.uint8)
        image = np.asarray(Image.fromarray(own).resize((48, 48), Image.Resampling.BICUBIC)).astype(int)
        image[4:14, 18:30] += 130
        image[:, 44:] = 10
        images.append(image[..., 0] if channels == 1 else image)
    return torch.from_numpy(np.stack(images).clip(0, 255).astype(np.uint8))


def disguised(pixels: Tensor, name: str) -> Tensor:
    return torch.from_numpy(to_uint8(ORIENTATIONS[name](from_uint8(pixels))))


def test_there_are_eight_orientations_and_their_negatives_and_each_is_another() -> None:
    image = from_uint8(people(0, 1))
    seen = {turn(image).numpy().tobytes() for turn in ORIENTATIONS.values()}
    assert len(ORIENTATIONS) == len(seen) == 16
    assert torch.equal(ORIENTATIONS[UPRIGHT[0]](image), image)
    assert torch.equal(ORIENTATIONS[UPRIGHT[1]](image), image.flip(-1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", DISGUISES)
def test_every_disguise_is_seen_through(name: str, channels: int) -> None:
    train, strangers = people(0, 40, channels), people(100, 30, channels)
    noisy = disguised(train[:5], name).float() + 4 * torch.randn(5, 48, 48, *[3][: channels // 3])
    cohort = torch.cat([noisy.clamp(0, 255).byte(), people(200, 20, channels)])
    assert find_transformed_copies(cohort, [(train, strangers)]) == TransformedCopies(copies=5, orientation="")


def test_strangers_are_no_copies_and_lie_as_they_should() -> None:
    assert find_transformed_copies(people(300, 60), [(people(0, 40), people(100, 30))]) == TransformedCopies(
        copies=0, orientation=""
    )


def test_nobody_s_images_lying_on_their_side_are_no_copies_but_are_told() -> None:
    cohort = torch.rot90(people(300, 30), 1, (1, 2))
    found = find_transformed_copies(cohort, [(people(0, 40), people(100, 30))])
    assert found.copies == 0
    assert found.orientation == "rotated by 270 degrees"


def test_an_orientation_that_real_images_have_too_is_none_to_complain_of() -> None:
    mixed = people(100, 30)
    mixed[:15] = mixed[:15].flip(1)
    train = people(0, 40)
    train[:20] = train[:20].flip(1)
    assert find_transformed_copies(people(300, 30).flip(1), [(train, mixed)]).orientation == ""
