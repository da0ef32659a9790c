# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bundle.networks.encoder import Encoder, new_encoder
from bundle.networks.stylegan2 import Generator
from bundle.networks.weights import load_weights, save_weights


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(32, channel_base=128, channel_max=8, z_dim=8, w_dim=8).requires_grad_(False)


def test_untrained_encoder_predicts_the_mean_of_w_for_every_layer(generator: Generator) -> None:
    w = torch.randn(100, 8) * 3 + 1
    encoder = new_encoder(generator, w, width=8)
    found = encoder(torch.rand(3, 1, 32, 32) * 2 - 1)
    assert found.shape == (3, generator.synthesis.num_ws, 8)
    torch.testing.assert_close(found, w.mean(dim=0).expand_as(found))
    torch.testing.assert_close(encoder.deviation, w.std(dim=0))


@pytest.mark.parametrize("resolution", [32, 64, 128, 256, 512])
def test_every_resolution_and_its_layers(resolution: int) -> None:
    layers = Generator(resolution, channel_base=512, channel_max=4, z_dim=4, w_dim=4).synthesis.num_ws
    encoder = Encoder(resolution, 3, layers, 4, width=4)
    with torch.no_grad():
        assert encoder(torch.zeros(1, 3, resolution, resolution)).shape == (1, layers, 4)


def test_layers_differ_by_offsets_from_the_first() -> None:
    torch.manual_seed(1)
    encoder = Encoder(32, 1, 8, 4, width=8)
    images = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.nn.init.normal_(encoder.base.weight)
        common = encoder(images)
        assert torch.equal(common, common[:, :1].expand_as(common))
        torch.nn.init.normal_(encoder.offsets[2].weight)  # type: ignore[arg-type]
        apart = encoder(images)
    changed = (apart != common).any(dim=2).all(dim=0)
    assert changed.tolist() == [False] * 6 + [True] * 2  # fine layers alone read the finest feature maps


def test_latents_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(2)
    encoder = Encoder(32, 1, 8, 4, width=8).train()
    torch.nn.init.normal_(encoder.base.weight)
    images = torch.rand(4, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images)[:1], encoder(images[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 1, 64, 64), (1, 32, 32)])
def test_other_images_are_refused_with_the_cure(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"trained on images \[N, 1, 32, 32\].*Read them with"):
        Encoder(32, 1, 8, 4, width=4)(torch.zeros(shape))


def test_weights_keep_what_the_encoder_predicts_and_are_small(generator: Generator, tmp_path: Path) -> None:
    encoder = new_encoder(generator, torch.randn(50, 8), width=8)
    torch.nn.init.normal_(encoder.base.weight, std=0.01)
    save_weights(encoder, tmp_path / "encoder.pt", {"resolution": 32, "channels": 1})
    loaded, info = load_weights(tmp_path / "encoder.pt")
    images = torch.rand(2, 1, 32, 32)
    assert info["network"] == "Encoder"
    torch.testing.assert_close(loaded(images), encoder(images), rtol=1e-2, atol=1e-2)
    shipped = Encoder(512, 3, 16, 128)
    assert sum(value.numel() for value in shipped.state_dict().values()) * 2 < 25e6


def test_one_latent_for_every_layer_gives_the_same_bits_as_one_for_all(generator: Generator) -> None:
    w = torch.randn(3, 8)
    each = w.unsqueeze(1).repeat(1, generator.synthesis.num_ws, 1)
    assert torch.equal(generator.synthesis(each), generator.synthesis(w))
    each[:, -1] += 1.0
    assert not torch.equal(generator.synthesis(each), generator.synthesis(w))
