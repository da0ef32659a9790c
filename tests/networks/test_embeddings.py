# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bundle.networks.embeddings import ContrastiveEmbedding, SiameseVerifier
from bundle.networks.weights import load_weights, save_weights

KINDS = [ContrastiveEmbedding, SiameseVerifier]


def small(kind: type[ContrastiveEmbedding] | type[SiameseVerifier], channels: int = 1) -> torch.nn.Module:
    torch.manual_seed(0)
    return kind(channels, side=32, widths=(8, 8, 16), dimension=12).eval()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_images_of_any_size_become_features(
    kind: type[ContrastiveEmbedding] | type[SiameseVerifier], channels: int
) -> None:
    network = small(kind, channels)
    for side in (32, 48, 128):
        assert network(torch.rand(3, channels, side, side) * 2 - 1).shape == (3, 12)


def test_points_lie_on_the_sphere_whatever_the_brightness() -> None:
    network = small(ContrastiveEmbedding)
    images = torch.rand(5, 1, 32, 32) - 0.5
    points = network(images)
    torch.testing.assert_close(points.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(network(images * 0.6 + 0.2), points, atol=2e-2, rtol=0)


def test_verifier_compares_every_pair_as_its_formula_says() -> None:
    network = small(SiameseVerifier)
    assert isinstance(network, SiameseVerifier)
    network.requires_grad_(False).weight.normal_()
    x, y = network(torch.rand(2, 1, 32, 32)), network(torch.rand(3, 1, 32, 32))
    logits = network.compare(x, y)
    for i in range(2):
        for j in range(3):
            expected = sum(float(network.weight[k] * (x[i, k] - y[j, k]).abs()) for k in range(12)) + float(
                network.bias
            )
            assert float(logits[i, j]) == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(network.compare(y, x), logits.T)


@pytest.mark.parametrize("kind", KINDS)
def test_nearest_is_the_highest_of_all_pairs(kind: type[ContrastiveEmbedding] | type[SiameseVerifier]) -> None:
    network = small(kind)
    assert isinstance(network, ContrastiveEmbedding | SiameseVerifier)
    x, gallery = network(torch.rand(130, 1, 32, 32)), network(torch.rand(7, 1, 32, 32))
    similarity, index = network.nearest(x, gallery)
    expected = network.compare(x, gallery).max(dim=1)
    torch.testing.assert_close(similarity, expected.values)
    assert torch.equal(index, expected.indices)
    assert network.nearest(gallery, gallery)[1].tolist() == list(range(7))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_back_from_disk(kind: type[ContrastiveEmbedding] | type[SiameseVerifier], tmp_path: Path) -> None:
    network = small(kind)
    save_weights(network, tmp_path / "network.pt", {})
    again, _ = load_weights(tmp_path / "network.pt")
    images = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(again(images), network(images), atol=1e-2, rtol=0)
