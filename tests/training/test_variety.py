# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bundle.training.variety import VarietyLoss, class_variance

LABEL = torch.tensor([0, 1, 0, 1, 0, 1])


def maps(spread: float, seed: int = 0, n: int = 6) -> list[Tensor]:
    """Two feature maps that vary around one direction, the more the larger the spread."""
    random = torch.Generator().manual_seed(seed)
    shapes = [(n, 3, 4, 4), (n, 5, 2, 2)]
    return [1.0 + spread * torch.randn(shape, generator=random) for shape in shapes]


def of_class(value: int) -> Tensor:
    return LABEL.eq(value)


def test_variance_by_hand() -> None:
    features = maps(0.5)
    wanted = []
    for x in features:
        members = x[of_class(1)].double()
        unit = members / members.square().sum(dim=1, keepdim=True).sqrt()
        squares = (unit - unit.mean(dim=0)).square().sum(dim=(0, 1)) / 2  # three images, unbiased
        wanted.append(float(squares.mean()))
    assert class_variance(features, of_class(1)).tolist() == pytest.approx(wanted, rel=1e-5)


def test_the_first_batch_by_hand() -> None:
    loss = VarietyLoss(2, 2)
    fakes, reals = maps(0.1, seed=1), maps(0.5)
    wanted = 0.0
    for value in range(2):
        share = class_variance(fakes, of_class(value)) / class_variance(reals, of_class(value))
        assert bool((share < 1.0).all())
        wanted += float(((1.0 - share) * (1.0 - share)).sum())
    assert float(loss(fakes, reals, LABEL)) == pytest.approx(wanted, rel=1e-4)
    shares = [class_variance(fakes, of_class(value)) / class_variance(reals, of_class(value)) for value in range(2)]
    assert loss.share == pytest.approx(float(torch.stack(shares).mean()), rel=1e-4)


def test_fakes_that_vary_enough_are_left_alone() -> None:
    loss = VarietyLoss(2, 2)
    fakes = [x.requires_grad_(True) for x in maps(0.8)]
    value = loss(fakes, maps(0.1, seed=1), LABEL)
    value.backward()
    assert float(value.detach()) == 0.0
    assert all(float(x.grad.abs().max()) == 0.0 for x in fakes if x.grad is not None)
    assert loss.share > 1.0


def test_descending_makes_fakes_vary_more_and_stops_at_the_reals() -> None:
    loss = VarietyLoss(2, 2)
    fakes = [x.requires_grad_(True) for x in maps(0.1, seed=1)]
    reals = maps(0.4)
    optimizer = torch.optim.SGD(fakes, lr=0.05)
    before = [class_variance(fakes, of_class(value)) for value in range(2)]
    for _ in range(600):
        optimizer.zero_grad()
        loss(fakes, reals, LABEL).backward()
        optimizer.step()
    for value in range(2):
        after, wanted = class_variance(fakes, of_class(value)), class_variance(reals, of_class(value))
        assert bool((after > 2.0 * before[value]).all())
        assert bool((after < 1.6 * wanted).all())


def test_means_run_over_batches() -> None:
    """A batch without a gap of its own still feels the gap of the batches before it."""
    loss = VarietyLoss(2, 2)
    reals = maps(0.4)
    for seed in range(20):
        loss(maps(0.1, seed), reals, LABEL)
    assert loss.share < 0.5
    varied = maps(0.4)
    gap = 1.0 - loss.fake / loss.real
    assert float(loss(varied, reals, LABEL).abs()) < 0.05 * float(gap.sum())  # the second factor: none of its own
    assert loss.share < 0.6


def test_a_class_with_one_image_does_not_count() -> None:
    loss = VarietyLoss(2, 3)
    label = torch.tensor([0, 0, 0, 0, 0, 2])
    assert loss.share == 1.0
    loss(maps(0.1, seed=1), maps(0.4), label)
    assert loss.weight.tolist() == pytest.approx([0.02, 0.0, 0.0])
    assert bool((loss.real[1:] == 0.0).all())
    assert 0.0 < loss.share < 1.0


def test_state_holds_the_means() -> None:
    first, second = VarietyLoss(2, 2), VarietyLoss(2, 2)
    first(maps(0.1, seed=1), maps(0.4), LABEL)
    second.load_state_dict(first.state_dict(), strict=True)
    batch = maps(0.2, seed=2), maps(0.4, seed=3), LABEL
    assert torch.equal(first(*batch), second(*batch))


def test_the_same_real_image_several_times_is_no_division_by_zero() -> None:
    loss = VarietyLoss(2, 2)
    same = [values[:1].expand_as(values) for values in maps(0.4)]
    fakes = [values.requires_grad_(True) for values in maps(0.1, seed=1)]
    value = loss(fakes, same, LABEL)
    gradients = torch.autograd.grad(value, fakes)
    assert float(value.detach()) == 0.0
    assert all(bool((gradient == 0.0).all()) for gradient in gradients)
    assert loss.share > 1.0
