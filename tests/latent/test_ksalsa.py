# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bundle.latent.ksalsa import GRID, KSalsa, KSalsaSettings, style_differences, style_of_crops
from bundle.latent.reconstruction import synthesise
from bundle.networks.realism import RealismJudge
from bundle.networks.stylegan2 import Generator
from bundle.networks.weights import load_weights
from bundle.options import OptionError

FEW = KSalsaSettings(steps=8)


@pytest.fixture(scope="module")
def networks(toy_models: Path) -> tuple[Generator, RealismJudge]:
    generator, judge = (load_weights(toy_models / f"{name}.pt")[0] for name in ("generator", "realism_guide"))
    assert isinstance(generator, Generator)
    assert isinstance(judge, RealismJudge)
    return generator, judge


def cluster(generator: Generator, n: int, seed: int, label: int = 0) -> tuple[Tensor, Tensor]:
    """Latents w+ of the images of n patients, and their mean in W."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        w = generator.mapping(torch.randn(n, generator.z_dim, generator=random), torch.full((n,), label))
    return w.unsqueeze(1).repeat(1, generator.synthesis.num_ws, 1), w.mean(dim=0)


def even(n: int) -> Tensor:
    return torch.full((n,), 1 / n)


def test_crops_lie_side_by_side_and_their_styles_are_gram_matrices() -> None:
    features = torch.randn(2, 3, 8, 12)
    style = style_of_crops(features)
    assert style.shape == (2, GRID * GRID, 9)
    crop = features[1, :, 2:4, 9:12].flatten(1)  # the second row, the last column of the grid
    torch.testing.assert_close(style[1, GRID + GRID - 1].view(3, 3), crop @ crop.T / 6)


def test_each_crop_is_compared_with_the_most_similar_one_of_each_image() -> None:
    style = style_of_crops(torch.randn(1, 3, 16, 16))[0]
    shuffled = style[torch.randperm(len(style))]
    # Twice as strong a style is as similar by the cosine, but differs.
    differences = style_differences(style, torch.stack([style, shuffled, 2.0 * shuffled]))
    torch.testing.assert_close(differences, torch.stack([torch.zeros(()), torch.zeros(()), style.square().mean()]))


def test_moved_centroids_are_more_like_their_patients(networks: tuple[Generator, RealismJudge]) -> None:
    generator, judge = networks
    move = KSalsa(generator, judge, KSalsaSettings(steps=20, lambda_prior=0.0))
    (first, mean), (second, other) = (cluster(generator, 4, seed) for seed in (2, 3))
    start, weights = torch.stack([mean, other]), [even(4), even(4)]
    moved = move(0, start, [first, second], weights)

    def losses(w: Tensor) -> list[float]:
        content, style = move._describe(synthesise(generator, w))
        clusters = [move._cluster(members, even(4)) for members in (first, second)]
        return [float(one.loss(content[i], style[i], 1.0)) for i, one in enumerate(clusters)]

    assert moved.shape == start.shape
    assert all(after < before for after, before in zip(losses(moved), losses(start), strict=True))


def test_no_step_leaves_the_mean(networks: tuple[Generator, RealismJudge]) -> None:
    members, mean = cluster(networks[0], 3, 1)
    moved = KSalsa(*networks, KSalsaSettings(steps=0))(0, mean.unsqueeze(0), [members], [even(3)])
    torch.testing.assert_close(moved[0], mean)


def test_patients_weigh_the_same_whatever_their_images(networks: tuple[Generator, RealismJudge]) -> None:
    """The second patient's image, once or three times."""
    members, mean = cluster(networks[0], 3, 1)
    move = KSalsa(*networks, FEW)
    once = move(0, mean.unsqueeze(0), [members], [even(3)])
    weights = torch.tensor([1 / 3, 1 / 9, 1 / 9, 1 / 9, 1 / 3])
    thrice = members[[0, 1, 1, 1, 2]]
    torch.testing.assert_close(move(0, mean.unsqueeze(0), [thrice], [weights]), once, atol=1e-2, rtol=0)
    heavy = move(0, mean.unsqueeze(0), [thrice], [even(5)])
    assert not torch.allclose(heavy, once, atol=5e-2)


def test_clusters_do_not_influence_each_other(networks: tuple[Generator, RealismJudge]) -> None:
    move = KSalsa(*networks, FEW)
    (first, mean), (second, other) = (cluster(networks[0], n, seed) for n, seed in ((3, 1), (5, 2)))
    together = move(0, torch.stack([mean, other]), [first, second], [even(3), even(5)])
    alone = move(0, mean.unsqueeze(0), [first], [even(3)])
    torch.testing.assert_close(together[:1], alone, atol=1e-2, rtol=0)


def test_the_pull_holds_centroids_nearer_to_w(networks: tuple[Generator, RealismJudge]) -> None:
    members, mean = cluster(networks[0], 3, 1, label=1)
    distances = []
    for weight in (0.0, 10.0):
        move = KSalsa(*networks, KSalsaSettings(steps=20, lambda_prior=weight))
        moved = move(1, mean.unsqueeze(0), [members], [even(3)])
        distances.append(float(move.prior(moved.unsqueeze(1), torch.tensor([1]))))
    assert distances[1] < 0.5 * distances[0]


def test_patients_who_look_the_same_are_no_division_by_zero(networks: tuple[Generator, RealismJudge]) -> None:
    members, _ = cluster(networks[0], 1, 1)
    moved = KSalsa(*networks, FEW)(0, members[:, 0], [members.repeat(3, 1, 1)], [even(3)])
    assert moved.isfinite().all()


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(OptionError, match="steps must be a whole number"):
        KSalsaSettings(steps=2.5)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="style must be a number of at least 0"):
        KSalsaSettings(style=-1)
