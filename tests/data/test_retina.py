# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from bundle.data import check_dataset
from bundle.data.layouts import read_folder
from bundle.data.readers import ReadError, decode
from bundle.data.retina import CropRetinad, check_retina, find_retina
from bundle.data.transforms import image_transform

Photograph = NDArray[np.float32]


def photograph(
    height: int = 240,
    width: int = 320,
    centre: tuple[float, float] = (160, 120),
    radius: float = 100,
    level: float = 0.4,
    seed: int = 0,
) -> Photograph:
    """A disc of reddish noise on nearly black, with a bright disc and a dark spot, as a fundus camera shows."""
    y, x = np.mgrid[:height, :width] + 0.5
    rng = np.random.default_rng(seed)
    image = np.stack([share * level * np.ones_like(x) for share in (1.6, 0.8, 0.4)])
    image *= rng.uniform(0.8, 1.2, x.shape)
    image[:, np.hypot(x - centre[0] - 0.5 * radius, y - centre[1]) < 0.15 * radius] = min(1.0, 2.0 * level)
    image[:, np.hypot(x - centre[0] + 0.3 * radius, y - centre[1]) < 0.1 * radius] *= 0.1
    image[:, np.hypot(x - centre[0], y - centre[1]) > radius] = 0.02
    return image.clip(0.0, 1.0).astype(np.float32)


@pytest.mark.parametrize(
    ("height", "width", "centre", "radius"),
    [
        (240, 320, (160, 120), 100),  # whole
        (240, 320, (150, 125), 140),  # cut off above and below
        (240, 240, (120, 120), 150),  # but for the corners it fills the frame
        (960, 1280, (640, 480), 400),  # larger than what the circle is sought at
        (64, 64, (32, 32), 30),
    ],
)
def test_the_circle_is_found(height: int, width: int, centre: tuple[float, float], radius: float) -> None:
    image = photograph(height, width, centre, radius)
    retina = find_retina(image)
    assert retina is not None
    np.testing.assert_allclose(retina.circle, (*centre, radius), atol=0.02 * radius)
    assert retina.filled > 0.95
    assert retina.off < 0.02
    check_retina(image)


def test_black_that_was_padded_is_no_part_of_the_photograph() -> None:
    image = photograph(240, 320, (160, 120), 150)
    padded = np.pad(image, ((0, 0), (40, 40), (0, 0)))
    check_retina(padded)
    found, before = find_retina(padded), find_retina(image)
    assert found is not None and before is not None
    np.testing.assert_allclose(found.circle, np.add(before.circle, (0, 40, 0)), atol=1.0)
    assert found.shown == pytest.approx(before.shown, abs=0.02)


def test_the_mark_at_the_rim_moves_nothing() -> None:
    image = photograph()
    image[:, 40:60, 225:245] = 0.5
    retina = find_retina(image)
    assert retina is not None
    np.testing.assert_allclose(retina.circle, (160, 120, 100), atol=2.0)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (np.zeros((3, 100, 100), np.float32), "no retina"),
        (np.full((3, 100, 100), 0.5, np.float32), "no retina"),
        (photograph()[:, 60:180, 100:220], "no retina"),  # no edge of it is in the picture
        (photograph(radius=30), "no retina"),
        (photograph(centre=(10, 120)), "cut off"),
        (photograph(level=0.04), "too dark"),
        (np.where(photograph() > 0.05, 1.0, 0.0).astype(np.float32), "too bright"),
    ],
)
def test_what_cannot_be_used_is_refused(image: Photograph, kind: str) -> None:
    with pytest.raises(ReadError) as error:
        check_retina(image)
    assert error.value.kind == kind
    assert error.value.cure


def test_a_square_on_black_is_no_retina() -> None:
    image = np.zeros((3, 200, 200), np.float32)
    image[:, 40:160, 50:150] = 0.5
    with pytest.raises(ReadError, match="no round field of view"):
        check_retina(image)


def test_what_is_outside_the_circle_becomes_black_and_the_frame_is_the_circle() -> None:
    image = photograph()
    result = CropRetinad("image")({"image": torch.from_numpy(image), "label": 1})
    cut: torch.Tensor = result["image"]
    assert result["label"] == 1
    assert cut.shape[1:] == pytest.approx((197, 197), abs=3)
    assert (cut[:, :10, :10] == 0).all()
    middle = cut[:, 60:140, 60:140].numpy()
    top, left = 120 - cut.shape[1] // 2, 160 - cut.shape[2] // 2
    np.testing.assert_array_equal(middle, image[:, top + 60 : top + 140, left + 60 : left + 140])


def test_a_second_cut_changes_little() -> None:
    crop = CropRetinad("image")
    once = crop({"image": torch.from_numpy(photograph(480, 640, (320, 240), 200))})["image"]
    twice = crop({"image": once})["image"]
    assert abs(twice.shape[1] - once.shape[1]) <= 0.03 * once.shape[1]


def test_an_image_without_a_circle_stays_as_it_is() -> None:
    image = torch.full((3, 50, 50), 0.5)
    assert torch.equal(CropRetinad("image")({"image": image})["image"], image)


def test_photographs_of_different_cameras_come_out_alike(tmp_path: Path) -> None:
    transform = image_transform("fundus", 64)
    results = []
    for name, image in (
        ("wide", photograph(240, 400, (170, 120), 100)),
        ("large", photograph(720, 960, (480, 360), 300)),
    ):
        Image.fromarray((image * 255).round().astype(np.uint8).transpose(1, 2, 0)).save(tmp_path / f"{name}.png")
        results.append(transform({"image": str(tmp_path / f"{name}.png")})["image"])
    first, second = results
    assert first.shape == (3, 64, 64)
    assert first[:, 0, 0].tolist() == [-1.0, -1.0, -1.0]
    assert float((first - second).abs().mean()) < 0.06


def test_the_shared_photographs_can_all_be_used(shared_data: Path) -> None:
    records = read_folder(shared_data / "fundus", modality="fundus").records
    for record in records[::25]:
        check_retina(decode(record.image, 3, strict=True))
    assert {record.label for record in records} == set(range(5))


def test_the_check_names_photographs_without_a_retina(tmp_path: Path) -> None:
    lines = ["image,label"]
    grey, flat = np.full((3, 60, 80), 0.5, np.float32), np.full((3, 60, 80), 0.5, np.float32)
    grey[:, :20] = 0.1
    flat[0, :30] = 0.9
    for i in range(52):
        image = {0: grey, 1: flat}.get(i, photograph(60, 80, (40, 30), 25, seed=i))
        Image.fromarray((image * 255).astype(np.uint8).transpose(1, 2, 0)).save(tmp_path / f"{i:02d}.png")
        lines.append(f"{i:02d}.png,{i % 5}")
    (tmp_path / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    problems = check_dataset(tmp_path, modality="fundus", progress=False).problems
    assert [(problem.name, problem.kind) for problem in problems] == [("00.png", "grey"), ("01.png", "no retina")]
