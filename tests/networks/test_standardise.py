# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from bundle.networks.standardise import resized, standardised


def test_brighter_and_paler_is_all_the_same() -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(standardised(images), standardised(images * 0.5 + 0.3), atol=5e-3, rtol=0)
    assert float(standardised(torch.full((1, 1, 8, 8), 0.4)).abs().max()) < 1e-3  # finite, though nothing varies


def test_resizing_keeps_what_has_the_size_and_the_mean_of_the_rest() -> None:
    images = torch.rand(2, 1, 32, 32)
    assert torch.equal(resized(images, 32), images)
    assert resized(images.half(), 16).dtype == torch.float32
    torch.testing.assert_close(resized(images, 16).mean(), images.mean(), atol=1e-2, rtol=0)
    assert resized(images, 64).shape == (2, 1, 64, 64)
