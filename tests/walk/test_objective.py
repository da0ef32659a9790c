# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bundle.walk.objective import (
    SOUND,
    BalancedObjective,
    Objective,
    PublishedObjective,
    class_cross_entropy,
    identity_divergence,
    step_lengths,
)

PATHS, W_DIM, IDENTITIES, CLASSES = 2, 5, 7, 3
LABEL = torch.tensor([2, 0])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def answers(n_points: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Paths, logits of both guides, log distances from real images and distances from the prior, for N points."""
    inner = n_points - 2
    return (
        torch.randn(PATHS, n_points, W_DIM),
        3.0 * torch.randn(PATHS, inner, IDENTITIES),
        3.0 * torch.randn(PATHS, inner, CLASSES),
        2.0 * torch.rand(PATHS, inner, CLASSES),
        2.0 * torch.rand(PATHS, inner),
    )


def straight(n_points: int) -> Tensor:
    share = torch.linspace(0, 1, n_points).view(1, -1, 1)
    return torch.lerp(torch.zeros(PATHS, 1, W_DIM), torch.randn(PATHS, 1, W_DIM), share)


def published_loss(w: Tensor, identity: Tensor, classes: Tensor, y: int) -> float:
    """One path's loss, number by number: 4 images at a time, means over a chunk, summed over chunks (method's page)."""
    loss = 0.0
    for i in range(len(w) - 1):
        loss += 1.0 * sum((float(w[i, d]) - float(w[i + 1, d])) ** 2 for d in range(w.shape[1]))
    for start in range(0, len(identity), 4):
        chunk = range(start, min(start + 4, len(identity)))
        kl, ce = 0.0, 0.0
        for i in chunk:
            p = [math.exp(float(x)) for x in identity[i]]
            p = [x / sum(p) for x in p]
            kl += sum(1 / len(p) * math.log((1 / len(p)) / x) for x in p)
            q = [math.exp(float(x)) for x in classes[i]]
            ce += -math.log(q[y] / sum(q))
        loss += 0.1 * kl / len(chunk) + 1.0 * ce / len(chunk)
    return loss


@pytest.mark.parametrize("n_points", [50, 3, 9, 15, 8])
def test_published_objective_to_the_letter(n_points: int) -> None:
    """48 inner points are whole chunks; 1, 7, 13 and 6 leave a smaller last one."""
    w, identity, classes, realism, prior = answers(n_points)
    terms = PublishedObjective()(w, identity, classes, realism, LABEL, prior)
    assert set(terms) == {"identity", "distance", "class", "loss"}
    for path in range(PATHS):
        expected = published_loss(w[path], identity[path], classes[path], int(LABEL[path]))
        assert float(terms["loss"][path]) == pytest.approx(expected, rel=1e-4)


def test_published_guides_weigh_n_over_4_times_the_mean() -> None:
    w, identity, classes, realism, prior = answers(50)
    terms = PublishedObjective()(w, identity, classes, realism, LABEL, prior)
    torch.testing.assert_close(terms["identity"], 0.1 * 12 * identity_divergence(identity).mean(dim=1))
    torch.testing.assert_close(terms["class"], 12 * class_cross_entropy(classes, LABEL).mean(dim=1))


def test_identity_divergence_is_kl_from_uniform() -> None:
    logits = torch.randn(4, 6, IDENTITIES)
    uniform = torch.full((IDENTITIES,), 1 / IDENTITIES)
    p = logits.softmax(dim=-1)
    torch.testing.assert_close(identity_divergence(logits), (uniform * (uniform / p).log()).sum(dim=-1))
    torch.testing.assert_close(identity_divergence(torch.zeros(3, IDENTITIES)), torch.zeros(3), atol=1e-6, rtol=0)


def test_class_cross_entropy_is_torchs() -> None:
    logits = torch.randn(PATHS, 4, CLASSES)
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), LABEL.repeat_interleave(4), reduction="none"
    ).view(PATHS, 4)
    torch.testing.assert_close(class_cross_entropy(logits, LABEL), expected)


def test_coinciding_points_can_part() -> None:
    w = torch.zeros(1, 4, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(step_lengths(w).sum(), w)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("n_points", [3, 10, 50])
def test_default_on_the_straight_line(n_points: int) -> None:
    _, identity, classes, realism, _ = answers(n_points)
    prior = torch.ones(PATHS, n_points - 2)
    terms = BalancedObjective()(straight(n_points), identity, classes, realism, LABEL, prior)
    weights = BalancedObjective()
    torch.testing.assert_close(terms["distance"], torch.full((PATHS,), weights.lambda_dist), rtol=1e-4, atol=0)
    torch.testing.assert_close(terms["even"], torch.full((PATHS,), weights.lambda_even), rtol=1e-4, atol=0)
    assert float(terms["prior"].abs().max()) == 0.0


def resampled(n_points: int) -> Tensor:
    """N evenly spaced points of one bent path, a half circle between two points that are 2 apart."""
    angle = torch.linspace(0, math.pi, n_points, dtype=torch.float64)
    arc = torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], dim=1)
    return arc.expand(PATHS, -1, -1)


def test_terms_mean_the_same_for_every_n() -> None:
    """One path, more or less densely sampled, with guides that answer the same along it."""
    objective = BalancedObjective()
    values: dict[int, dict[str, Tensor]] = {}
    for n_points in (20, 50, 200):
        inner = n_points - 2
        values[n_points] = objective(
            resampled(n_points),
            torch.tensor([1.0, 0, 0]).expand(PATHS, inner, 3),
            torch.tensor([0.0, 1, 0]).expand(PATHS, inner, 3),
            torch.tensor([1.0, 2, 3]).expand(PATHS, inner, 3),
            LABEL,
            torch.full((PATHS, inner), 1.5),
        )
    for n_points in (20, 50):
        for name, value in values[200].items():
            torch.testing.assert_close(values[n_points][name], value, rtol=0.005, atol=1e-6, check_dtype=False)
    expected = objective.lambda_dist * (math.pi / 2) ** 2
    torch.testing.assert_close(
        values[200]["distance"], torch.full((PATHS,), expected), rtol=1e-3, atol=0, check_dtype=False
    )
    assert float(values[50]["even"][0]) == pytest.approx(objective.lambda_even, rel=1e-5)
    assert float(values[50]["prior"][0]) == pytest.approx(0.5 * objective.lambda_prior)


def test_published_distance_fades_with_n() -> None:
    """Why the default is another: on the straight line it is d^2 / (N - 1)."""
    w = straight(50)
    _, identity, classes, realism, prior = answers(50)
    d = (w[:, -1] - w[:, 0]).norm(dim=1)
    torch.testing.assert_close(
        PublishedObjective()(w, identity, classes, realism, LABEL, prior)["distance"], d.square() / 49
    )


def test_spacing_term_by_hand() -> None:
    """Steps of 1, 2 and 3: 3 (1 + 4 + 9) / 36; one step that is all: N - 1."""
    objective = BalancedObjective()
    _, identity, classes, realism, prior = answers(4)
    w = torch.tensor([0.0, 1.0, 3.0, 6.0]).view(1, 4, 1).expand(PATHS, 4, 1)
    even = objective(w, identity, classes, realism, LABEL, prior)["even"] / objective.lambda_even
    torch.testing.assert_close(even, torch.full((PATHS,), 3 * 14 / 36))
    jump = torch.tensor([0.0, 0.0, 0.0, 6.0]).view(1, 4, 1).expand(PATHS, 4, 1)
    even = objective(jump, identity, classes, realism, LABEL, prior)["even"] / objective.lambda_even
    torch.testing.assert_close(even, torch.full((PATHS,), 3.0), rtol=1e-4, atol=0)


def test_default_is_the_published_distance_apart() -> None:
    """L_dist L_even (d^2 / (N - 1)) is the published L_dist, whatever the path."""
    w, identity, classes, realism, prior = answers(9)
    objective = BalancedObjective()
    terms = objective(w, identity, classes, realism, LABEL, prior)
    product = terms["distance"] / objective.lambda_dist * terms["even"] / objective.lambda_even
    d = (w[:, -1] - w[:, 0]).norm(dim=1)
    published = PublishedObjective()(w, identity, classes, realism, LABEL, prior)["distance"]
    torch.testing.assert_close(product * d.square() / 8, published, rtol=1e-4, atol=0)


def test_default_does_not_change_with_the_scale_of_w() -> None:
    w, identity, classes, realism, prior = answers(9)
    one, other = (BalancedObjective()(scale * w, identity, classes, realism, LABEL, prior) for scale in (1.0, 10.0))
    torch.testing.assert_close(one, other)


def test_identity_term_leaves_alone_what_is_like_a_strangers_image() -> None:
    w, identity, classes, realism, prior = answers(6)
    identity = identity.clone().requires_grad_(True)
    divergence = identity_divergence(identity).detach()
    kappa = float(divergence.median())
    term = BalancedObjective(lambda_id=2.0, kappa=kappa)(w, identity, classes, realism, LABEL, prior)["identity"]
    torch.testing.assert_close(term, 2.0 * (divergence - kappa).clamp_min(0.0).mean(dim=1))
    (gradient,) = torch.autograd.grad(term.sum(), [identity])
    assert torch.equal(gradient.abs().sum(dim=2) > 0, divergence > kappa)
    assert (divergence > kappa).any() and not (divergence > kappa).all()


def test_prior_term_lets_typical_points_alone() -> None:
    w, identity, classes, realism, _ = answers(4)
    prior = torch.tensor([[0.2, 1.0], [1.0, 3.0]])
    terms = BalancedObjective(lambda_prior=2.0)(w, identity, classes, realism, LABEL, prior)
    torch.testing.assert_close(terms["prior"], torch.tensor([0.0, 2.0]))


def test_realism_term_looks_at_the_paths_class_and_lets_typical_images_alone() -> None:
    w, identity, classes, _, prior = answers(4)
    # Distances from real images [paths, points, classes].
    distances = torch.tensor([[[9.0, 9.0, 0.5], [0.0, 0.0, SOUND]], [[4.0, 0.0, 0.0], [9.0, 9.0, 9.0]]])
    objective = BalancedObjective(lambda_real=2.0)
    terms = objective(w, identity, classes, distances.log1p(), LABEL, prior)
    torch.testing.assert_close(terms["real"], torch.tensor([0.0, math.log(3.0) + math.log(6.0)]))
    assert not BalancedObjective(lambda_real=0.0)(w, identity, classes, distances.log1p(), LABEL, prior)["real"].any()


@pytest.mark.parametrize("objective", [BalancedObjective(), PublishedObjective()], ids=["balanced", "published"])
def test_loss_is_the_sum_and_paths_are_apart(objective: Objective) -> None:
    w, identity, classes, realism, prior = answers(9)
    terms = objective(w, identity, classes, realism, LABEL, prior)
    torch.testing.assert_close(
        terms["loss"], torch.stack([value for key, value in terms.items() if key != "loss"]).sum(dim=0)
    )
    alone = objective(w[1:], identity[1:], classes[1:], realism[1:], LABEL[1:], prior[1:])
    for key, value in alone.items():
        torch.testing.assert_close(value, terms[key][1:])
