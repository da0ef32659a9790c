# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bundle.latent.prior import LatentPrior
from bundle.latent.reconstruction import (
    image_errors,
    layer_spread,
    mapped_samples,
    nearest_of_others,
    reconstruction_scores,
    reproduce,
    synthesise,
)
from bundle.metrics.lpips import embed, lpips_model, pairwise
from bundle.networks.stylegan2 import Generator


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(32, channel_base=256, channel_max=16, z_dim=8, w_dim=8).requires_grad_(False)


def test_samples_cycle_through_the_classes_and_depend_on_the_seed(generator: Generator) -> None:
    w = mapped_samples(generator, 3, 10)
    assert torch.equal(mapped_samples(generator, 3, 10), w)
    assert not torch.equal(mapped_samples(generator, 4, 10), w)
    torch.testing.assert_close(mapped_samples(generator, 3, 6), w[:6])


def test_gradient_reaches_saturated_pixels(generator: Generator) -> None:
    w = (torch.randn(2, 8) * 100).requires_grad_(True)
    image = reproduce(generator, w)
    assert torch.equal(image, generator.synthesis(w))
    saturated = image[image.abs() == 1.0]
    assert len(saturated)
    saturated.sum().backward()
    assert w.grad is not None
    assert float(w.grad.abs().max()) > 0


def test_errors_are_lpips_and_squared_error(generator: Generator, squeezenet_file: Path) -> None:
    model = lpips_model(squeezenet_file)
    x, y = (synthesise(generator, mapped_samples(generator, seed, 3)) for seed in range(2))
    distance, squared = image_errors(x, y, embed(y, model), model)
    torch.testing.assert_close(distance, pairwise(x, y, model).diagonal(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(squared, (x - y).square().mean(dim=(1, 2, 3)))


def test_spread_is_0_in_w_and_counts_deviations() -> None:
    deviation = torch.tensor([1.0, 2.0, 4.0])
    w = torch.randn(2, 1, 3).repeat(1, 4, 1)
    assert layer_spread(w, deviation).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    w[1, :2] += deviation
    w[1, 2:] -= deviation
    assert layer_spread(w, deviation).tolist() == pytest.approx([0.0, 1.0], abs=1e-6)


def test_nearest_image_is_never_of_the_same_patient(squeezenet_file: Path) -> None:
    model = lpips_model(squeezenet_file)
    images = torch.rand(3, 1, 32, 32) * 2 - 1
    images[1] = images[0]
    owners = torch.tensor([0, 0, 1])
    found = nearest_of_others(images, owners, images, owners, model)
    distances = pairwise(images, images, model)
    torch.testing.assert_close(found, torch.stack([distances[0, 2], distances[1, 2], distances[2, :2].min()]))
    strangers = nearest_of_others(images, torch.tensor([-1, -1, -1]), images, owners, model)
    assert float(strangers.max()) < 1e-4
    assert nearest_of_others(images[:1], owners[:1], images[:2], owners[:2], model).tolist() == [torch.inf]


def test_scores_of_the_true_latents_are_perfect_and_of_others_are_not(
    generator: Generator, squeezenet_file: Path
) -> None:
    model, prior, label = lpips_model(squeezenet_file), LatentPrior(generator), torch.arange(20) % 2
    w = mapped_samples(generator, 5, 20)
    images, nearest = synthesise(generator, w), torch.full((20,), 0.01)
    each = w.unsqueeze(1).repeat(1, generator.synthesis.num_ws, 1)
    scores = reconstruction_scores(generator, each, images, label, nearest, torch.ones(8), prior, model)
    assert scores["n"] == 20
    assert scores["lpips"] < 1e-4
    assert scores["pixels"] < 1e-4
    assert scores["spread"] < 1e-4
    assert scores["nearer"] == 1.0
    assert scores["lpips_nearest"] == pytest.approx(0.01)
    assert 0.3 < scores["prior"] < 2.0
    each[:, ::2] += 3.0
    moved = reconstruction_scores(generator, each, images, label, nearest, torch.ones(8), prior, model)
    for name in ("lpips", "pixels", "spread", "prior"):
        assert moved[name] > 2 * scores[name], name
    assert moved["spread"] == pytest.approx(1.5, rel=1e-3)
