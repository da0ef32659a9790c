# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bundle.training.losses import discriminator_loss, generator_loss, lazy_adam, r1_penalty


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_non_saturating_losses_by_hand() -> None:
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.0, 3.0])
    sigmoid = [1.0 / (1.0 + math.exp(-x)) for x in (2.0, -1.0, 0.0, 3.0)]
    expected = -(math.log(sigmoid[0]) + math.log(sigmoid[1])) / 2
    expected -= (math.log(1.0 - sigmoid[2]) + math.log(1.0 - sigmoid[3])) / 2
    assert float(discriminator_loss(real, fake)) == pytest.approx(expected, rel=1e-5)
    assert float(generator_loss(fake)) == pytest.approx(-(math.log(sigmoid[2]) + math.log(sigmoid[3])) / 2, rel=1e-5)


def test_losses_stay_finite_and_keep_their_gradient_where_sigmoid_saturates() -> None:
    fake = torch.tensor([-200.0], requires_grad=True)
    loss = generator_loss(fake)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(200.0)
    assert fake.grad is not None
    assert float(fake.grad) == pytest.approx(-1.0)


def test_r1_of_a_quadratic() -> None:
    """D(x) = x^T A x / 2 + b^T x has the gradient A x + b (A symmetric)."""
    batch, size = 5, 2 * 3 * 3
    a, b = torch.randn(size, size), torch.randn(size)
    a = (a + a.T) / 2
    x = torch.randn(batch, 2, 3, 3, requires_grad=True)
    flat = x.flatten(1)
    logits = ((flat @ a) * flat).sum(dim=1) / 2 + flat @ b
    expected = (flat @ a + b).square().sum(dim=1).mean()
    penalty = r1_penalty(logits, x)
    torch.testing.assert_close(penalty, expected)
    # And it can be differentiated again: d/dx of |A x + b|^2 / batch is 2 A (A x + b) / batch.
    (gradient,) = torch.autograd.grad(penalty, x)
    torch.testing.assert_close(gradient.flatten(1), (2.0 / batch * (flat @ a + b) @ a).detach())


def test_r1_reaches_the_weights() -> None:
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    x = torch.randn(2, 1, 4, 4, requires_grad=True)
    r1_penalty(layer(x).square().sum(dim=(1, 2, 3)), x).backward()
    assert layer.weight.grad is not None
    assert float(layer.weight.grad.abs().min()) > 0.0


def test_lazy_adam_corrects_for_the_interval() -> None:
    """Karras et al., CVPR 2020, appendix B: lr' = c lr, beta' = beta^c, c = k / (k + 1)."""
    parameters = [nn.Parameter(torch.zeros(1))]
    group = lazy_adam(parameters, 0.0025, (0.0, 0.99), interval=16).param_groups[0]
    assert group["lr"] == pytest.approx(0.0025 * 16 / 17)
    assert group["betas"] == pytest.approx((0.0, 0.99 ** (16 / 17)))
    assert group["eps"] == 1e-8


def test_without_a_regulariser_adam_is_as_asked() -> None:
    group = lazy_adam([nn.Parameter(torch.zeros(1))], 0.0025, (0.0, 0.99)).param_groups[0]
    assert (group["lr"], group["betas"]) == (0.0025, (0.0, 0.99))
