# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from bundle.latent.prior import LatentPrior
from bundle.networks.stylegan2 import Generator


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(32, num_classes=3, z_dim=12, w_dim=8, channel_base=128, channel_max=4).requires_grad_(False)


@pytest.fixture(scope="module")
def prior(generator: Generator) -> LatentPrior:
    return LatentPrior(generator)


def samples(generator: Generator, label: int, n: int = 4000) -> Tensor:
    """Latents [1, n, w_dim] of one class that the prior has not seen."""
    z = torch.randn(n, generator.z_dim, generator=torch.Generator().manual_seed(99))
    return generator.mapping(z, torch.full((n,), label)).unsqueeze(0)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_samples_of_the_mapping_have_a_mean_of_one_per_class(
    generator: Generator, prior: LatentPrior, label: int
) -> None:
    distance = prior(samples(generator, label), torch.tensor([label]))
    assert distance.shape == (1, 4000)
    assert float(distance.mean()) == pytest.approx(1.0, abs=0.05)
    assert float(distance.min()) >= 0.0


def test_the_spread_of_the_samples_is_no_distance(generator: Generator) -> None:
    """Samples that the mapping network spreads are as typical as before."""
    spread = copy.deepcopy(generator)
    spread.mapping.mean.copy_(torch.stack([samples(generator, label)[0].mean(dim=0) for label in range(3)]))
    spread.mapping.spread.copy_(torch.tensor([1.5, 1.0, 0.7]))
    prior = LatentPrior(spread)
    for label in range(3):
        assert float(prior(samples(spread, label), torch.tensor([label])).mean()) == pytest.approx(1.0, abs=0.05)


def test_other_classes_are_further(generator: Generator, prior: LatentPrior) -> None:
    w = samples(generator, 0)
    own, other = (float(prior(w, torch.tensor([label])).mean()) for label in (0, 1))
    assert other > 1.5 * own


@pytest.mark.parametrize("stretch", [0.5, 2.0, 4.0])
def test_distance_is_the_square_of_how_far_outside(generator: Generator, prior: LatentPrior, stretch: float) -> None:
    """Measured where the mapping's last leaky ReLU is undone."""
    w, label = samples(generator, 0), torch.tensor([0])
    v = torch.where(w > 0, w, 5.0 * w)
    stretched = prior.mean[0] + stretch * (v - prior.mean[0])
    moved = torch.where(stretched > 0, stretched, stretched / 5.0)
    torch.testing.assert_close(prior(moved, label), stretch**2 * prior(w, label), rtol=1e-3, atol=1e-4)


def test_labels_are_of_paths(generator: Generator, prior: LatentPrior) -> None:
    w = torch.cat([samples(generator, label, 5) for label in (2, 0)])
    both = prior(w, torch.tensor([2, 0]))
    torch.testing.assert_close(both[0], prior(w[:1], torch.tensor([2]))[0])
    torch.testing.assert_close(both[1], prior(w[1:], torch.tensor([0]))[0])


def test_same_seed_same_prior(generator: Generator, prior: LatentPrior) -> None:
    again, other = LatentPrior(generator), LatentPrior(generator, seed=1)
    assert torch.equal(again.mean, prior.mean)
    assert torch.equal(again.whitening, prior.whitening)
    assert not torch.equal(other.mean, prior.mean)


def test_prior_leads_back(generator: Generator, prior: LatentPrior) -> None:
    """Descending on it brings a point from outside to the distribution."""
    w = (samples(generator, 1, 20) * 3.0).requires_grad_(True)
    label = torch.tensor([1])
    start = float(prior(w, label).mean().detach())
    (gradient,) = torch.autograd.grad(prior(w, label).sum(), w)
    assert bool(gradient.isfinite().all())
    assert float(prior(w - 0.01 * gradient / gradient.norm(), label).mean().detach()) < start
