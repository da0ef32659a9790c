# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from bundle.metrics.copies import PLANTED_CHANGES, copy_threshold


def test_threshold_is_the_percentile_of_val() -> None:
    assert copy_threshold(torch.linspace(0, 1, 101)) == pytest.approx(0.95)
    with pytest.raises(ValueError, match="val split is empty"):
        copy_threshold(torch.empty(0))


@pytest.mark.parametrize("name", PLANTED_CHANGES)
@pytest.mark.parametrize("channels", [1, 3])
def test_planted_changes_change_every_image_and_are_the_same_every_time(name: str, channels: int) -> None:
    torch.manual_seed(0)
    images = torch.rand(3, channels, 32, 32) * 1.6 - 0.8
    changed = PLANTED_CHANGES[name](images)
    assert changed.shape == images.shape
    assert bool(((changed - images).abs().flatten(1).mean(dim=1) > 0.01).all())
    assert torch.equal(PLANTED_CHANGES[name](images), changed)
