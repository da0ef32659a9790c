# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from bundle.latent.labelled_latents import labelled_latents
from bundle.networks.sampling import sample_z


def test_labelled_latents_join_z_with_the_one_hot_label() -> None:
    items = labelled_latents(5, z_dim=8, num_classes=3, seed=1)
    assert [item["label"] for item in items] == [0, 1, 2, 0, 1]
    assert [item["name"] for item in items][:2] == ["000000", "000001"]
    for index, item in enumerate(items):
        assert torch.equal(item["image"][:8], sample_z([index], 8, seed=1)[0])
        assert item["image"][8:].tolist() == [float(label == item["label"]) for label in range(3)]
