# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from bundle.metrics import changes


@pytest.fixture
def ramp() -> torch.Tensor:
    """Brightness rises from left to right, -0.5 to 0.5."""
    return torch.linspace(-0.5, 0.5, 32).expand(2, 1, 32, 32).contiguous()


def test_geometric_changes_move_what_they_should(ramp: torch.Tensor) -> None:
    step = 1.0 / 31
    shifted = changes.shift(ramp, 0.25, 0.0)
    torch.testing.assert_close(shifted[..., 8:], ramp[..., :-8])
    assert torch.equal(shifted[..., 0], ramp[..., 0])  # the border is drawn out
    quarter = changes.rotate(ramp, 90.0)
    assert (quarter[0, 0, :, 5] - quarter[0, 0, 0, 5]).abs().max() == pytest.approx(31 * step, abs=1e-3)
    assert (quarter[0, 0, 5] - quarter[0, 0, 5, 0]).abs().max() == pytest.approx(0.0, abs=1e-3)
    middle = changes.resize(ramp, 2.0)[0, 0, 16]
    torch.testing.assert_close(middle.diff()[1:-1], torch.full((29,), step / 2), atol=1e-4, rtol=0)


def test_brightness_changes_follow_their_formulas(ramp: torch.Tensor) -> None:
    torch.testing.assert_close((changes.gamma(ramp, 2.0) + 1) / 2, ((ramp + 1) / 2) ** 2)
    torch.testing.assert_close(changes.contrast(ramp, 0.5).std(), ramp.std() / 2)
    noise = changes.noise(ramp, 0.1) - ramp
    assert noise.std() == pytest.approx(0.1, rel=0.1)
    assert len(changes.posterise(ramp, 4).unique()) <= 4


def test_jpeg_loses_more_at_lower_quality(ramp: torch.Tensor) -> None:
    torch.manual_seed(0)
    rough = (ramp + 0.2 * torch.randn_like(ramp)).clamp(-1, 1)
    errors = [float((changes.jpeg(rough, quality) - rough).abs().mean()) for quality in (95, 50, 10)]
    assert 0 < errors[0] < errors[1] < errors[2]
