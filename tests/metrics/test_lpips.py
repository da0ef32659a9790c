# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import lpips
import pytest
import torch

from bundle.metrics.lpips import lpips_model, mean_pairwise, nearest, pairwise, pairwise_within


@pytest.fixture(scope="module")
def model(squeezenet_file: Path) -> lpips.LPIPS:
    return lpips_model(squeezenet_file)


def draw(n: int, channels: int, side: int, seed: int) -> torch.Tensor:
    coarse = torch.rand(n, channels, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=side, mode="bicubic").clamp(-1, 1)


def by_the_package(x: torch.Tensor, y: torch.Tensor, model: lpips.LPIPS) -> torch.Tensor:
    x, y = x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)
    with torch.no_grad():
        return torch.stack([model(image.expand(len(y), -1, -1, -1), y).flatten() for image in x])


@pytest.mark.parametrize(("channels", "side"), [(1, 64), (3, 64), (1, 128)])
def test_pairwise_equals_the_lpips_package(model: lpips.LPIPS, channels: int, side: int) -> None:
    x, y = draw(5, channels, side, 0), draw(7, channels, side, 1)
    expected = by_the_package(x, y, model)
    assert float(expected.min()) > 0.01
    torch.testing.assert_close(pairwise(x, y, model), expected, atol=1e-5, rtol=1e-4)


def test_the_trunk_of_the_model_is_that_of_the_file(model: lpips.LPIPS, squeezenet_file: Path) -> None:
    weights = torch.load(squeezenet_file, weights_only=True)
    torch.testing.assert_close(model.net.slice3[2].expand3x3.weight, weights["features.7.expand3x3.weight"])


def test_documented_value_of_the_real_trunk(shared_data: Path) -> None:
    model = lpips_model(shared_data / "weights" / "squeezenet1_1_features_fp32.pth")
    generator = torch.Generator().manual_seed(123)
    x, y = (torch.rand(10, 3, 100, 100, generator=generator) * 2 - 1 for _ in range(2))
    # The doc-test of torchmetrics' learned_perceptual_image_patch_similarity(net_type="squeeze") prints this.
    assert float(pairwise(x, y, model).diagonal().mean()) == pytest.approx(0.1008, abs=1e-4)


@pytest.mark.parametrize("memory", [1, 2 * 4 * 119_000])
def test_small_memory_changes_nothing(model: lpips.LPIPS, memory: int) -> None:
    x, y = draw(5, 1, 64, 0), draw(9, 1, 64, 1)
    torch.testing.assert_close(pairwise(x, y, model, memory=memory), pairwise(x, y, model), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(pairwise(y, x, model, memory=memory), pairwise(x, y, model).T, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("memory", [1, 2 * 4 * 119_000, 2**30])
def test_within_a_set_as_between_it_and_itself(model: lpips.LPIPS, memory: int) -> None:
    images = draw(40, 1, 64, 0)  # more than pass the network at once
    within = pairwise_within(images, model, memory=memory)
    torch.testing.assert_close(within, pairwise(images, images, model), atol=1e-5, rtol=1e-4)
    assert torch.equal(within, within.T)
    assert not within.diagonal().any()
    assert pairwise_within(images[:0], model).shape == (0, 0)


def test_nearest_finds_planted_copies(model: lpips.LPIPS) -> None:
    reals = draw(12, 1, 64, 0)
    samples = torch.cat([draw(4, 1, 64, 1), reals[[3, 8]]])
    distances = nearest(samples, reals, model)
    assert float(distances[-2:].max()) < 1e-5
    torch.testing.assert_close(distances, pairwise(samples, reals, model).amin(1))
    assert float(distances[:4].min()) > 0.01


def test_mean_pairwise_is_the_mean_over_all_pairs(model: lpips.LPIPS) -> None:
    images = draw(40, 1, 64, 0)
    distances = pairwise(images, images, model)
    assert mean_pairwise(images, model) == pytest.approx(float(distances.sum()) / (40 * 39), rel=1e-4)
    assert mean_pairwise(images[:1].repeat(3, 1, 1, 1), model) == pytest.approx(0, abs=1e-7)


def test_impossible_sets_are_refused(model: lpips.LPIPS) -> None:
    with pytest.raises(ValueError, match="one size"):
        pairwise(draw(2, 1, 64, 0), draw(2, 1, 32, 0), model)
    with pytest.raises(ValueError, match="at least one"):
        nearest(draw(2, 1, 64, 0), torch.zeros(0, 1, 64, 64), model)
    with pytest.raises(ValueError, match="at least 2"):
        mean_pairwise(draw(1, 1, 64, 0), model)
