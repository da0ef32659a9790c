# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.auditing.patches import LOCAL, describe_cells, local_correlation


def images(n: int, seed: int, side: int = 64, channels: int = 1) -> Tensor:
    """Smooth random images, uint8."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, channels, side // 4, side // 4, generator=random)
    smooth = F.interpolate(coarse, size=side, mode="bicubic")
    pixels = (127.5 + 50.0 * smooth).clamp(0, 255).to(torch.uint8)
    return pixels[:, 0] if channels == 1 else pixels.permute(0, 2, 3, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_pasted_quarter_and_a_blend_are_found(channels: int) -> None:
    gallery, hosts = images(12, 0, channels=channels), images(12, 1, channels=channels)
    part, blend = hosts.clone(), (0.7 * gallery + 0.3 * hosts).to(torch.uint8)
    part[:, 32:, :32] = gallery[:, 32:, :32]
    whole = torch.arange(12)
    alone, quarter, mixed = (local_correlation(pixels, describe_cells(gallery)) for pixels in (hosts, part, blend))
    assert torch.equal(quarter["part_index"], whole)
    assert torch.equal(mixed["whole_index"], whole)
    assert float(quarter["part"].min()) > 0.95 > float(alone["part"].max())
    assert float(mixed["whole"].min()) > 0.7 > float(alone["whole"].max())
    assert float(quarter["whole"].max()) < 0.7  # a quarter is no whole


def test_brightness_and_contrast_do_not_matter() -> None:
    gallery = images(5, 2)
    changed = (0.6 * gallery.double() + 40.0).to(torch.uint8)
    found = local_correlation(changed, describe_cells(gallery))
    for name in LOCAL:
        assert torch.equal(found[f"{name}_index"], torch.arange(5))
        assert float(found[name].min()) > 0.95


def test_flat_images_correlate_with_nothing() -> None:
    flat = torch.full((2, 64, 64), 90, dtype=torch.uint8)
    found = local_correlation(flat, describe_cells(images(3, 3)))
    for name in LOCAL:
        assert bool((found[name] == 0.0).all())


def test_a_gallery_in_several_parts_is_one_gallery(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, gallery = images(7, 4), images(11, 5)
    whole = local_correlation(pixels, describe_cells(gallery))
    monkeypatch.setattr("bundle.auditing.patches.COLUMNS", 4)
    monkeypatch.setattr("bundle.auditing.patches.ROWS", 3)
    parts = local_correlation(pixels, describe_cells(gallery))
    for name in LOCAL:
        torch.testing.assert_close(parts[name], whole[name])
        assert torch.equal(parts[f"{name}_index"], whole[f"{name}_index"])
