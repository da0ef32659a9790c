# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from bundle.data import DataError, Modality, image_transform
from bundle.data.transforms import MatchHistogramd, fitting_preprocessings, get_preprocessing

Drawing = Callable[..., NDArray[np.uint8]]


#: Those for images of one channel.
GREY = ["crop", "crop_histogram", "histogram", "plain"]


def test_preprocessings_fit_numbers_of_channels() -> None:
    assert sorted(fitting_preprocessings(1)) == GREY
    assert set(fitting_preprocessings(3)) == {*GREY, "retina"}
    with pytest.raises(DataError, match="unknown preprocessing 'retina'; use one of plain, crop"):
        get_preprocessing(_toy("retina"))


def _toy(preprocessing: str = "plain", channels: int = 1) -> Modality:
    return Modality("toy", channels, ("a", "b"), preprocessing=preprocessing)


def _load(path: Path, modality: Modality, resolution: int) -> torch.Tensor:
    image = image_transform(modality, resolution)({"image": str(path), "label": 1})
    assert image["label"] == 1
    return image["image"]


def test_same_size_is_the_same_picture(tmp_path: Path, draw: Drawing) -> None:
    Image.fromarray(draw(height=32, width=32)).save(tmp_path / "a.png")
    image = _load(tmp_path / "a.png", _toy(), 32)
    assert type(image) is torch.Tensor
    assert image.dtype == torch.float32
    expected = torch.from_numpy(draw(height=32, width=32)) / 127.5 - 1
    torch.testing.assert_close(image[0], expected)


@pytest.mark.parametrize("preprocessing", GREY)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(40, 120), (120, 40), (50, 50), (20, 20)])
def test_shape_range_and_determinism(
    tmp_path: Path, draw: Drawing, preprocessing: str, channels: int, height: int, width: int
) -> None:
    Image.fromarray(draw(height=height, width=width)).save(tmp_path / "a.png")
    image = _load(tmp_path / "a.png", _toy(preprocessing, channels), 32)
    assert image.shape == (channels, 32, 32)
    assert -1 <= image.min() < image.max() <= 1
    assert torch.equal(image, _load(tmp_path / "a.png", _toy(preprocessing, channels), 32))


def test_aspect_is_kept_and_the_rest_is_black(tmp_path: Path) -> None:
    pixels = np.full((60, 120), 200, np.uint8)
    pixels[20:40, 50:70] = 50  # a square stays a square
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = _load(tmp_path / "a.png", _toy(), 48)[0]
    assert (image[:12] == -1).all()
    assert (image[-12:] == -1).all()
    assert (image[12:36] > -1).all()
    dark = (image[12:36] < 0).nonzero()
    height, width = (dark.max(dim=0).values - dark.min(dim=0).values + 1).tolist()
    assert (height, width) == (8, 8)


@pytest.mark.parametrize("preprocessing", GREY)
def test_upright(tmp_path: Path, preprocessing: str) -> None:
    pixels = np.random.default_rng(0).integers(40, 80, (96, 144), dtype=np.uint8)
    pixels[16:44, 24:64] = 250  # top left
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = _load(tmp_path / "a.png", _toy(preprocessing), 48)[0]
    row, column = (image > 0.5).nonzero().float().mean(dim=0).tolist()
    assert row < 22
    assert column < 22


def test_shrinking_does_not_alias(tmp_path: Path) -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (256, 128))
    Image.fromarray(stripes).save(tmp_path / "a.png")
    image = _load(tmp_path / "a.png", _toy(), 32)
    assert image.abs().max() < 0.05  # every other column black: the mean is grey


def test_unknown_preprocessing_and_resolution(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown preprocessing 'magic'; use one of"):
        image_transform(_toy("magic"), 32)
    with pytest.raises(DataError, match="resolution is 0"):
        image_transform(_toy(), 0)


def test_no_noise_from_readers_that_are_never_asked() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        image_transform("xray", 32)


@pytest.mark.parametrize("channels", [1, 3])
def test_matched_histograms_are_the_reference_and_keep_the_order(channels: int) -> None:
    reference = (0.0, 0.5, 0.6, 1.0)
    image = torch.rand(channels, 40, 40, generator=torch.Generator().manual_seed(0)) ** 3 * 0.4 + 0.1
    matched = MatchHistogramd("image", reference)({"image": image})["image"]
    quantiles = torch.quantile(matched.flatten(), torch.tensor([0.0, 1 / 3, 2 / 3, 1.0]))
    torch.testing.assert_close(quantiles, torch.tensor(reference), atol=4e-3, rtol=0)
    assert torch.equal(matched.flatten().argsort(), image.flatten().argsort())


def test_equal_pixels_stay_equal() -> None:
    image = torch.zeros(1, 8, 8)
    image[..., 4:] = 1.0
    matched = MatchHistogramd("image", (0.0, 1.0))({"image": image})["image"]
    assert matched.unique().tolist() == [0.25, 0.75]


def test_matching_hides_exposure_and_gamma(tmp_path: Path, draw: Drawing) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32))
    Image.fromarray((pixels * 100).astype(np.uint16)).save(tmp_path / "a.png")
    Image.fromarray((pixels**2 // 2).astype(np.uint16)).save(tmp_path / "b.png")
    first, second = (_load(tmp_path / name, _toy("histogram"), 32) for name in ("a.png", "b.png"))
    # The robust range clips the ends of each image, a few pixels more or fewer.
    torch.testing.assert_close(first, second, atol=0.02, rtol=0)


def test_cropping_cuts_each_side(tmp_path: Path) -> None:
    pixels = np.full((100, 200), 100, np.uint8)
    pixels[7:-7, 15:-15] = 200
    pixels[50, 100] = 20
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = _load(tmp_path / "a.png", _toy("crop"), 168)[0]
    inside = image[42:-42]
    assert inside.shape == (84, 168)
    assert (inside > 0).sum() == 84 * 168 - 1
