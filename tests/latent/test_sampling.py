# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from bundle.latent.sampling import labelled_latents, sample_z


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


def test_labelled_latents_join_z_with_the_one_hot_label() -> None:
    items = labelled_latents(5, z_dim=8, num_classes=3, seed=1)
    assert [item["label"] for item in items] == [0, 1, 2, 0, 1]
    assert [item["name"] for item in items][:2] == ["000000", "000001"]
    for index, item in enumerate(items):
        assert torch.equal(item["image"][:8], sample_z([index], 8, seed=1)[0])
        assert item["image"][8:].tolist() == [float(label == item["label"]) for label in range(3)]
