# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bundle.figures import contact_sheet, from_uint8, image_grid, save_png, to_uint8


def test_to_uint8_rounds_and_clips() -> None:
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0, 2 * 100.4 / 255 - 1]).view(1, 1, 1, 6)
    assert to_uint8(values).tolist() == [[[0, 0, 128, 255, 255, 100]]]
    assert to_uint8(torch.zeros(2, 3, 4, 5)).shape == (2, 4, 5, 3)


def test_every_byte_survives_the_round_trip() -> None:
    values = torch.arange(256).view(1, 1, 16, 16) / 127.5 - 1
    assert np.array_equal(to_uint8(values).ravel(), np.arange(256))


def test_grid_places_images_row_by_row() -> None:
    images = torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, 1, 10, 8)
    grid = image_grid(images, columns=3)
    assert (grid.mode, grid.size) == ("L", (3 * 8 + 2 * 2, 2 * 10 + 2))
    pixels = np.asarray(grid)
    assert [int(pixels[0, 0]), int(pixels[0, 10]), int(pixels[0, 20]), int(pixels[12, 0])] == [0, 64, 128, 191]
    assert int(pixels[12, 20]) == 255


def test_labels_and_captions_are_drawn_beside_and_under_the_images() -> None:
    images = -torch.ones(4, 3, 32, 32)
    plain = image_grid(images, columns=2)
    labelled = image_grid(images, columns=2, labels=["linear", "PLAN"])
    assert labelled.mode == "RGB"
    margin = labelled.width - plain.width
    assert labelled.height == plain.height
    assert np.asarray(labelled)[:, : margin - 4].min() < 100
    assert np.array_equal(np.asarray(labelled)[:, margin:], np.asarray(plain))

    sheet = contact_sheet(images, ["a", "b", "c", "a caption far too long for its image"], columns=2)
    assert sheet.width == plain.width
    assert sheet.height > plain.height
    assert np.asarray(sheet)[33 : sheet.height // 2 - 2, :].min() < 100


def test_save_png_writes_the_same_bytes_and_leaves_nothing_else(tmp_path: Path) -> None:
    picture = image_grid(torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1, columns=2)
    first, second = tmp_path / "new" / "one.png", tmp_path / "new" / "two.png"
    save_png(picture, first)
    save_png(picture, second)
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in first.parent.iterdir()) == ["one.png", "two.png"]
    with Image.open(first) as read:
        assert np.array_equal(np.asarray(read), np.asarray(picture))


def test_impossible_sheets_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        image_grid(torch.zeros(0, 1, 8, 8), columns=2)
    with pytest.raises(ValueError, match="labels"):
        image_grid(torch.zeros(4, 1, 8, 8), columns=2, labels=["one"])
    with pytest.raises(ValueError, match="captions"):
        contact_sheet(torch.zeros(4, 1, 8, 8), ["one"])
    with pytest.raises(ValueError, match="NaN"):
        image_grid(torch.full((1, 1, 8, 8), float("nan")), columns=1)
    with pytest.raises(ValueError, match="1 or 3 channels"):
        to_uint8(torch.zeros(1, 8, 8))


@pytest.mark.parametrize("channels", [1, 3])
def test_bytes_survive_the_way_to_an_image_and_back(channels: int) -> None:
    shape = (4, 8, 8) if channels == 1 else (4, 8, 8, 3)
    pixels = torch.arange(4 * 64 * channels, dtype=torch.int64).remainder(256).to(torch.uint8).view(shape)
    images = from_uint8(pixels)
    assert images.shape == (4, channels, 8, 8)
    assert torch.equal(torch.from_numpy(to_uint8(images)), pixels)
