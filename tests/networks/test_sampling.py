# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from bundle.networks.sampling import sample_images, sample_z
from bundle.networks.stylegan2 import Generator


def test_each_latent_depends_on_the_seed_and_its_number_alone() -> None:
    many = sample_z(range(10), 16, seed=3)
    assert torch.equal(sample_z([7, 2], 16, seed=3), many[[7, 2]])
    assert not torch.equal(sample_z(range(10), 16, seed=4), many)
    assert len({tuple(row) for row in many.tolist()}) == 10
    assert sample_z([], 16, seed=3).shape == (0, 16)


def test_latents_are_standard_normal() -> None:
    z = sample_z(range(500), 64, seed=0)
    assert z.dtype == torch.float32
    # 32 000 values: the standard errors are 0.0056 and 0.004.
    assert abs(float(z.mean())) < 0.03
    assert abs(float(z.std()) - 1) < 0.02


def test_latents_of_a_seed_are_not_the_numbers_that_weights_took_under_it() -> None:
    torch.manual_seed(0)
    layers = Generator(32, z_dim=64, w_dim=64).requires_grad_(False).mapping.layers
    rows = torch.cat([value.reshape(-1, 64) for value in layers.parameters() if value.ndim == 2])
    z = sample_z(range(20), 64, seed=0)
    # Of unrelated rows, the highest correlation is about 0.5; of equal ones it is 1.
    assert float(torch.corrcoef(torch.cat([z, rows])).triu(1)[:20].abs().max()) < 0.8


def test_images_do_not_depend_on_how_many_are_made_at_a_time() -> None:
    torch.manual_seed(0)
    generator = Generator(32, z_dim=4, w_dim=4, channel_base=128, channel_max=4).requires_grad_(False)
    z, label = sample_z(range(5), 4, seed=0), torch.arange(5) % 2
    images = sample_images(generator, z, label, batch_size=2)
    assert images.shape == (5, 1, 32, 32)
    torch.testing.assert_close(images, generator.synthesis(generator.mapping(z, label)))
