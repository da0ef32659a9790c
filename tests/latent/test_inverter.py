# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bundle.latent.inverter import InversionError, InversionSettings, Inverter
from bundle.latent.reconstruction import layer_spread, mapped_samples, synthesise
from bundle.networks.encoder import Encoder, new_encoder
from bundle.networks.stylegan2 import Generator

LABEL = torch.tensor([0, 1, 0, 1])


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(32, channel_base=256, channel_max=16, z_dim=8, w_dim=8).requires_grad_(False)


@pytest.fixture(scope="module")
def encoder(generator: Generator) -> Encoder:
    torch.manual_seed(1)
    return new_encoder(generator, mapped_samples(generator, 1, 500), width=8).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images(generator: Generator) -> Tensor:
    return synthesise(generator, mapped_samples(generator, 9, 4))


def test_descent_reproduces_the_generators_own_images(
    generator: Generator, encoder: Encoder, images: Tensor, squeezenet_file: Path
) -> None:
    def inverted(steps: int, lambda_prior: float = 0.0) -> dict[str, Tensor]:
        settings = InversionSettings(steps, 0.1, lambda_prior)
        return Inverter(generator, encoder, settings, squeezenet_file)(images, LABEL)

    start, found = inverted(0), inverted(40)
    assert torch.equal(start["w"], encoder(images))
    for name in ("lpips", "pixels"):
        assert float(found[name].mean()) < 0.6 * float(start[name].mean()), name
    torch.testing.assert_close(
        found["pixels"], (synthesise(generator, found["w"]) - images).square().mean(dim=(1, 2, 3)).sqrt()
    )
    again = inverted(40)
    assert all(torch.equal(again[name], value) for name, value in found.items())


def test_pull_keeps_latents_where_w_is_dense(generator: Generator, encoder: Encoder, squeezenet_file: Path) -> None:
    images = torch.rand(4, 1, 32, 32) * 2 - 1  # nothing that the generator can make
    found = {}
    for weight in (0.0, 1.0):
        inverter = Inverter(generator, encoder, InversionSettings(30, 0.2, weight), squeezenet_file)
        w = inverter(images, LABEL)["w"]
        outside = float(inverter.prior(w, LABEL).mean())
        found[weight] = outside, float(layer_spread(w, encoder.deviation).mean())
    assert found[1.0][0] < 0.5 * found[0.0][0]
    assert found[1.0][1] < 0.5 * found[0.0][1]


def test_networks_are_not_changed(
    generator: Generator, encoder: Encoder, images: Tensor, squeezenet_file: Path
) -> None:
    before = {key: value.clone() for key, value in {**generator.state_dict(), **encoder.state_dict()}.items()}
    Inverter(generator, encoder, InversionSettings(2), squeezenet_file)(images, LABEL)
    after = {**generator.state_dict(), **encoder.state_dict()}
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_start_without_an_encoder_is_the_mean(generator: Generator, encoder: Encoder, squeezenet_file: Path) -> None:
    start = Inverter(generator, encoder, InversionSettings(), squeezenet_file).mean_start(3)
    assert torch.equal(start, encoder.mean.expand(3, generator.synthesis.num_ws, 8))


def test_what_does_not_fit_is_refused_with_the_cure(
    generator: Generator, encoder: Encoder, squeezenet_file: Path
) -> None:
    other = Generator(64, channel_base=256, channel_max=16, z_dim=8, w_dim=8)
    with pytest.raises(InversionError, match=r"Train an encoder for this generator with"):
        Inverter(other, encoder, InversionSettings(), squeezenet_file)
    inverter = Inverter(generator, encoder, InversionSettings(1), squeezenet_file)
    for shape in ((2, 3, 32, 32), (2, 1, 64, 64)):
        with pytest.raises(InversionError, match=r"trained on images \[N, 1, 32, 32\]"):
            inverter(torch.zeros(shape), LABEL[:2])
