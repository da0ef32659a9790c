# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Reconstruction of images by a generator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bundle.auditing.deep.inversion import choose, inversion_attack, invert
from bundle.networks.stylegan2 import Generator
from bundle.steps import Tensors


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(32, channel_base=256, channel_max=16, z_dim=8, w_dim=8).eval().requires_grad_(False)


def test_the_generators_own_images_are_reconstructed_and_others_are_not(
    generator: Generator, squeezenet_file: str
) -> None:
    labels = torch.tensor([0, 1, 0, 1])
    random = torch.Generator().manual_seed(5)
    own = generator.synthesis(generator.mapping(torch.randn(4, 8, generator=random), labels))
    noise = torch.rand(own.shape, generator=random) * 2 - 1
    options = {"steps": 40, "starts": 2, "seed": 0, "squeezenet_file": squeezenet_file}
    mine, theirs = (invert(generator, images, labels, **options) for images in (own, noise))  # type: ignore[arg-type]
    start = invert(generator, own, labels, steps=1, starts=1, seed=0, squeezenet_file=squeezenet_file)
    for name in ("lpips", "pixels"):
        assert bool((mine[name] < 0.3 * start[name]).all())
        assert float(mine[name].max()) < 0.1 * float(theirs[name].min())
    again = invert(generator, own, labels, **options)  # type: ignore[arg-type]
    assert torch.equal(again["lpips"], mine["lpips"])


def test_images_of_all_roles_have_the_same_classes() -> None:
    labels = {"train": torch.arange(90) % 3, "val": torch.arange(40) % 2, "test": torch.arange(60) % 2}
    index = choose(labels, 30, 0)
    counts = {role: labels[role][mine].bincount(minlength=3).tolist() for role, mine in index.items()}
    assert counts == {role: [15, 15, 0] for role in labels}
    assert choose(labels, 1000, 0)["val"].shape == (40,)


def report(member: float, val: float) -> tuple[dict[str, float], dict[str, bool | None]]:
    """An attack on members and validation images whose errors are lower than those of test images by some amount."""
    random = torch.Generator().manual_seed(0)
    shift = {"train": member, "val": val, "test": 0.0}
    drawn: dict[str, Tensor] = {role: torch.rand(60, generator=random) for role in shift}
    errors: dict[str, Tensors] = {
        role: {"lpips": 2.0 + values - shift[role], "pixels": 2.0 + values - shift[role]}
        for role, values in drawn.items()
    }
    attack = inversion_attack(errors, dict.fromkeys(shift, torch.ones(60)), dict.fromkeys(shift, torch.arange(60)), 0)
    values = {row.key: row.estimate.value for row in attack.rows if row.key.endswith("auc")}
    return values, {control.key: control.passed for control in attack.controls}


def test_members_that_are_reconstructed_better_are_found() -> None:
    values, controls = report(0.4, 0.0)
    assert min(values.values()) > 0.7
    assert controls == dict.fromkeys(("val_error", "val_pixels", "val_calibrated"), True)


def test_attack_that_finds_never_seen_images_cannot_be_used() -> None:
    assert report(0.4, 0.4)[1] == dict.fromkeys(("val_error", "val_pixels", "val_calibrated"), False)
