# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.alignment import Views, aligned_correlation
from bundle.figures import from_uint8, to_uint8
from bundle.metrics.changes import elastic, resize, rotate, shift


def images(n: int, seed: int, side: int = 128) -> Tensor:
    """Random images with structure of every size, uint8 [N, side, side]."""
    random = torch.Generator().manual_seed(seed)
    layers = [
        F.interpolate(torch.randn(n, 1, cells, cells, generator=random), size=side, mode="bicubic")
        for cells in (max(3, side // 16), side // 4)
    ]
    return (127.5 + 30.0 * torch.stack(layers).sum(dim=0)).clamp(0, 255).to(torch.uint8)[:, 0]


def changed(pixels: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.from_numpy(to_uint8(change(from_uint8(pixels)).clamp(-1.0, 1.0)))


ALL = torch.arange(6).repeat(6, 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x,
        lambda x: x.flip(-1),
        lambda x: shift(x, 0.08, -0.08),
        lambda x: resize(x, 1.25),
        lambda x: rotate(x, 7.0),
        lambda x: elastic(x, 0.016),
        lambda x: 0.5 * resize(rotate(x.flip(-1), -4.0), 1.15) - 0.2,
    ],
    ids=["same", "mirrored", "shifted", "cropped", "rotated", "bent", "all"],
)
def test_altered_copies_correlate_and_other_images_do_not(change: Callable[[Tensor], Tensor]) -> None:
    gallery, strangers = images(6, 0), images(6, 1)
    views = Views.of(gallery)
    found, index = aligned_correlation(Views.of(changed(gallery, change)), views, ALL)
    alone, _ = aligned_correlation(Views.of(changed(strangers, change)), views, ALL)
    assert torch.equal(index, torch.arange(6))
    assert float(found.min()) > float(alone.max()) + 0.1


@pytest.mark.parametrize("side", [32, 40, 64, 100, 256])
def test_every_size_and_colour_images_are_compared(side: int) -> None:
    gallery = images(6, 2, side)
    coloured = gallery[..., None].repeat(1, 1, 1, 3)
    for pixels in (gallery, coloured):
        found, index = aligned_correlation(Views.of(pixels), Views.of(pixels), ALL)
        assert torch.equal(index, torch.arange(6))
        assert float(found.min()) > 0.99


def test_only_candidates_are_found_and_flat_images_correlate_with_nothing() -> None:
    gallery = images(6, 3)
    others = torch.tensor([[(n + 1) % 6, (n + 2) % 6] for n in range(6)])
    _, index = aligned_correlation(Views.of(gallery), Views.of(gallery), others)
    assert bool((index[:, None] == others).any(dim=1).all())
    flat = Views.of(torch.full((2, 128, 128), 90, dtype=torch.uint8))
    found, _ = aligned_correlation(flat, Views.of(gallery), others[:2])
    assert found.tolist() == [0.0, 0.0]
