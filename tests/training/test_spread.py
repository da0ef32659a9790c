# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bundle.networks.sampling import sample_images, sample_z
from bundle.networks.stylegan2 import Generator
from bundle.training.spread import SPREADS, calibrate_spread


def variety(images: Tensor) -> float:
    """Stands for LPIPS: the variance of the pixels."""
    return float(images.flatten(1).var(dim=0).mean())


def of_samples(generator: Generator, label: int, n: int = 200, seed: int = 0) -> float:
    return variety(sample_images(generator, sample_z(range(n), generator.z_dim, seed), torch.full((n,), label)))


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(32, z_dim=12, w_dim=8, channel_base=128, channel_max=4).requires_grad_(False)


def test_samples_get_the_variety_of_each_class(generator: Generator) -> None:
    wanted = [1.5 * of_samples(generator, 0), 0.7 * of_samples(generator, 1)]
    calibrate_spread(generator, wanted, variety)
    assert float(generator.mapping.spread[0]) > 1.05
    assert float(generator.mapping.spread[1]) < 0.95
    for label in range(2):
        assert of_samples(generator, label) == pytest.approx(wanted[label], rel=0.05)
        # Latents that it has not seen vary as much, within the error of 200 samples.
        assert of_samples(generator, label, seed=1) == pytest.approx(wanted[label], rel=0.2)


def test_the_mean_of_a_class_stays_where_it_was(generator: Generator) -> None:
    z, label = sample_z(range(4000), 12, seed=5), torch.ones(4000, dtype=torch.int64)
    before = generator.mapping(z, label)
    calibrate_spread(generator, [1.3 * of_samples(generator, value) for value in range(2)], variety, n_samples=50)
    after = generator.mapping(z, label)
    assert float(after.var(dim=0).sum()) > 1.1 * float(before.var(dim=0).sum())
    torch.testing.assert_close(after.mean(dim=0), before.mean(dim=0), atol=0.02, rtol=0.02)


def test_out_of_reach_takes_the_nearer_end(generator: Generator) -> None:
    calibrate_spread(generator, [0.0, 1e6], variety, n_samples=8)
    assert generator.mapping.spread.tolist() == list(SPREADS)


def test_calibrating_again_gives_the_same(generator: Generator) -> None:
    wanted = [1.4 * of_samples(generator, value) for value in range(2)]
    calibrate_spread(generator, wanted, variety, n_samples=50)
    first = generator.mapping.spread.clone()
    calibrate_spread(generator, wanted, variety, n_samples=50)
    assert torch.equal(generator.mapping.spread, first)
