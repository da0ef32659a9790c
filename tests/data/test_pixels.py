# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from bundle.data.formats import ReadError
from bundle.data.pixels import check_pixels, square_pixels


def _ramp(rows: int, columns: int) -> NDArray[np.float32]:
    return np.tile(np.linspace(0, 1, columns, dtype=np.float32), (rows, 1))


@pytest.mark.parametrize(
    ("shape", "height", "width", "size"),
    [
        ((100, 100), 2.0, 1.0, (100, 50)),
        ((100, 100), 1.0, 2.0, (50, 100)),
        ((100, 400), 2.0, 1.0, (200, 400)),  # the longer side of the patient keeps its pixels
        ((100, 400), 1.0, 2.0, (50, 400)),
        ((400, 100), 0.1, 0.3, (400, 300)),
    ],
)
def test_pixels_become_square(shape: tuple[int, int], height: float, width: float, size: tuple[int, int]) -> None:
    image = square_pixels(_ramp(*shape), height, width, "the header")
    assert image.shape == size
    np.testing.assert_allclose(image, _ramp(*size), atol=2 / min(shape))
    colour = square_pixels(np.stack([_ramp(*shape)] * 3, axis=-1), height, width, "the header")
    np.testing.assert_array_equal(colour, np.stack([image] * 3, axis=-1))


@pytest.mark.parametrize(("height", "width"), [(1.0, 1.0), (0.0, 0.0), (0.1430, 0.1431)])
def test_square_pixels_are_left_alone(height: float, width: float) -> None:
    image = _ramp(30, 40)
    assert square_pixels(image, height, width, "the header") is image


@pytest.mark.parametrize(("height", "width"), [(0.0, 1.0), (1.0, -1.0), (1.0, np.nan), (1.0, 20.0)])
def test_sides_that_no_pixel_has(height: float, width: float) -> None:
    with pytest.raises(ReadError, match=r"the header says that a pixel is .*Correct or delete the header") as caught:
        square_pixels(_ramp(30, 40), height, width, "the header")
    assert caught.value.kind == "wrong tag"


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "not finite"), (np.inf, "not finite"), (0.0, "blank")])
def test_the_suspect_is_named_and_the_image_not_condemned(value: float, kind: str) -> None:
    image = np.full((30, 40), value)
    with pytest.raises(ReadError) as caught:
        check_pixels(image, "the tag X")
    assert caught.value.kind == kind
    assert "after the tag X" in caught.value.message
    assert caught.value.cure == "Correct or delete the tag X"
