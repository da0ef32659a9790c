# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path as FilePath
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from bundle.latent.prior import LatentPrior
from bundle.networks.model_set import ModelSet, load_models
from bundle.walk.guides import ImageGuides
from bundle.walk.inferer import PlanWalkInferer
from bundle.walk.objective import BalancedObjective, Objective, PublishedObjective
from bundle.walk.path import PUBLISHED_SETTINGS, Path, WalkSettings, straight_path, walk

LABEL = torch.tensor([0, 1, 1])
SHORT = WalkSettings(steps=5, learning_rate=0.05, cosine=True, tolerance=0.0)


@pytest.fixture(scope="module")
def models(toy_models: FilePath) -> ModelSet:
    return load_models(toy_models)


@pytest.fixture(scope="module")
def prior(models: ModelSet) -> LatentPrior:
    return LatentPrior(models.generator)


@pytest.fixture(scope="module")
def ends(models: ModelSet) -> tuple[Tensor, Tensor]:
    z = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    w = models.generator.mapping(z, LABEL.repeat(2))
    return w[:3], w[3:]


def guides(models: ModelSet, clamped_gradient: bool = False, amp: bool = False) -> ImageGuides:
    networks = models.networks
    judges = networks["identity_guide"], networks["class_guide"], networks["realism_guide"]
    return ImageGuides(models.generator, *judges, clamped_gradient, amp)


def walked(
    models: ModelSet,
    prior: LatentPrior,
    ends: tuple[Tensor, Tensor],
    settings: WalkSettings = SHORT,
    objective: Objective | None = None,
    paths: slice = slice(None),
    n_points: int = 6,
    asked: ImageGuides | None = None,
) -> Path:
    return walk(
        ends[0][paths],
        ends[1][paths],
        LABEL[paths],
        n_points,
        guides(models) if asked is None else asked,
        prior,
        BalancedObjective() if objective is None else objective,
        settings,
    )


def test_straight_path_is_even_and_holds_its_ends(ends: tuple[Tensor, Tensor]) -> None:
    w = straight_path(*ends, 7)
    assert w.shape == (3, 7, 8)
    assert torch.equal(w[:, 0], ends[0])
    assert torch.equal(w[:, -1], ends[1])
    steps = w[:, 1:] - w[:, :-1]
    torch.testing.assert_close(steps, ((ends[1] - ends[0]) / 6).unsqueeze(1).expand(-1, 6, -1))


@pytest.mark.parametrize(
    ("objective", "cosine"),
    [(BalancedObjective(), True), (PublishedObjective(), False)],
    ids=["balanced", "published"],
)
def test_ends_are_held_and_the_loss_falls(
    models: ModelSet, prior: LatentPrior, ends: tuple[Tensor, Tensor], objective: Objective, cosine: bool
) -> None:
    settings = WalkSettings(steps=15, learning_rate=0.02, cosine=cosine, tolerance=0.0)
    path = walked(models, prior, ends, settings, objective, asked=guides(models, objective.clamped_gradient))
    assert path.w.shape == (3, 6, 8)
    assert path.loss_history.shape == (3, 15)
    assert torch.equal(path.w[:, 0], ends[0])
    assert torch.equal(path.w[:, -1], ends[1])
    moved = (path.w - straight_path(*ends, 6))[:, 1:-1].norm(dim=2)
    assert float(moved.min()) > 0.0
    start, end = path.loss_history[:, 0], path.loss_history[:, -1]
    assert bool((end < start).all())
    assert float(end.sum()) < 0.95 * float(start.sum())
    assert not path.w.requires_grad
    torch.testing.assert_close(path.terms["loss"], path.loss_history[:, -1])


def test_frozen_networks_take_no_gradients(models: ModelSet, prior: LatentPrior, ends: tuple[Tensor, Tensor]) -> None:
    networks = [models.generator, models.networks["identity_guide"], models.networks["class_guide"]]
    before = [copy.deepcopy(network.state_dict()) for network in networks]
    walked(models, prior, ends)
    for network, state in zip(networks, before, strict=True):
        for parameter in network.parameters():
            assert parameter.grad is None
            assert not parameter.requires_grad
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
        assert not network.training


def guides_in_parts(models: ModelSet) -> ImageGuides:
    """Asked about 5 of 12 points at once, then 5 and 2."""
    judge = guides(models)
    judge.points_per_call = 5
    return judge


def test_parts_give_what_the_whole_gives(models: ModelSet, prior: LatentPrior, ends: tuple[Tensor, Tensor]) -> None:
    whole = walked(models, prior, ends)
    parts = walked(models, prior, ends, asked=guides_in_parts(models))
    torch.testing.assert_close(parts.loss_history, whole.loss_history, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts.w, whole.w, rtol=1e-3, atol=1e-3)


def test_parts_bound_the_points_in_the_networks(
    models: ModelSet, prior: LatentPrior, ends: tuple[Tensor, Tensor]
) -> None:
    sizes: list[int] = []
    handle = models.networks["class_guide"].register_forward_hook(
        lambda module, inputs, output: sizes.append(len(inputs[0]))
    )
    walked(models, prior, ends, dataclasses.replace(SHORT, steps=1), asked=guides_in_parts(models))
    handle.remove()
    assert sizes[:3] == [5, 5, 2]
    assert max(sizes) == 5


def test_paths_do_not_influence_each_other(models: ModelSet, prior: LatentPrior, ends: tuple[Tensor, Tensor]) -> None:
    together, alone = walked(models, prior, ends), walked(models, prior, ends, paths=slice(1, 2))
    torch.testing.assert_close(alone.loss_history, together.loss_history[1:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone.w, together.w[1:2], rtol=1e-3, atol=1e-3)


def test_same_walk_same_bits(models: ModelSet, prior: LatentPrior, ends: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(walked(models, prior, ends).w, walked(models, prior, ends).w)


def test_settled_walk_stops_early(models: ModelSet, prior: LatentPrior, ends: tuple[Tensor, Tensor]) -> None:
    still = WalkSettings(steps=40, learning_rate=0.0, cosine=False, tolerance=1e-3)
    assert walked(models, prior, ends, still).loss_history.shape == (3, 20)
    assert walked(models, prior, ends, dataclasses.replace(still, tolerance=0.0, steps=22)).loss_history.shape == (
        3,
        22,
    )


class Bowl(nn.Module):
    """In place of G and the guides: says nothing, so that the distance alone pulls."""

    points_per_call = 64

    def forward(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        zero = (w * 0.0).sum(dim=1, keepdim=True)
        return zero.expand(-1, 3), zero.expand(-1, 2), zero.expand(-1, 2)


class Indifferent(nn.Module):
    """In place of the prior."""

    def forward(self, w: Tensor, label: Tensor) -> Tensor:
        return w.new_ones(w.shape[:2])


def descend(settings: WalkSettings, objective: Objective) -> Path:
    w_a, w_b = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])
    return walk(w_a, w_b, torch.tensor([0]), 6, Bowl(), Indifferent(), objective, settings)  # type: ignore[arg-type]


def test_straight_line_is_where_distance_alone_rests() -> None:
    for objective in (PublishedObjective(), BalancedObjective()):
        path = descend(WalkSettings(steps=30, learning_rate=0.01, cosine=True, tolerance=0.0), objective)
        expected = straight_path(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), 6)
        torch.testing.assert_close(path.w, expected, atol=0.05, rtol=0)


@dataclasses.dataclass(frozen=True)
class Linear:
    """Pushes every number of every point with the same force, so that Adam moves each by the learning rate."""

    name: ClassVar[str] = "linear"
    clamped_gradient: ClassVar[bool] = False
    realistic: ClassVar[bool] = False

    def __call__(
        self, w: Tensor, identity: Tensor, classes: Tensor, realism: Tensor, label: Tensor, prior: Tensor
    ) -> dict[str, Tensor]:
        return {"loss": w.sum(dim=(1, 2))}


def test_learning_rate_is_constant_or_falls_along_a_half_cosine() -> None:
    start = straight_path(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), 6)[:, 1:-1]
    constant = descend(WalkSettings(steps=8, learning_rate=0.1, cosine=False, tolerance=0.0), Linear())
    torch.testing.assert_close(start - constant.w[:, 1:-1], torch.full_like(start, 0.8), rtol=1e-4, atol=1e-5)
    falling = descend(WalkSettings(steps=8, learning_rate=0.1, cosine=True, tolerance=0.0), Linear())
    expected = sum(0.1 * 0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8))
    torch.testing.assert_close(start - falling.w[:, 1:-1], torch.full_like(start, expected), rtol=1e-4, atol=1e-5)


def test_every_step_is_reported(models: ModelSet, prior: LatentPrior, ends: tuple[Tensor, Tensor]) -> None:
    steps: list[Tensor] = []
    walk(
        *ends,
        LABEL,
        4,
        guides(models),
        prior,
        BalancedObjective(),
        SHORT,
        on_step=lambda points: steps.append(points.clone()),
    )
    assert len(steps) == 5
    assert torch.equal(steps[0], straight_path(*ends, 4)[:, 1:-1])
    assert not torch.equal(steps[1], steps[0])


@pytest.mark.parametrize("n_points", [2, 1])
def test_path_without_inner_points_is_refused(
    models: ModelSet, prior: LatentPrior, ends: tuple[Tensor, Tensor], n_points: int
) -> None:
    with pytest.raises(ValueError, match=rf"{n_points} leaves no point .* at least 3"):
        walked(models, prior, ends, n_points=n_points)


def test_saturated_pixels_keep_their_gradient_unless_clamped_as_published(models: ModelSet) -> None:
    generator = copy.deepcopy(models.generator)
    torch.nn.init.constant_(generator.synthesis.to_image.bias, 50.0)  # all white
    w = torch.randn(2, 8, requires_grad=True)
    answers = {}
    for clamped in (True, False):
        networks = (models.networks["identity_guide"], models.networks["class_guide"])
        identity, classes, realism = ImageGuides(generator, *networks, clamped_gradient=clamped, amp=False)(w)
        assert not realism.any()  # no judge of realism was given
        answers[clamped] = identity
        (gradient,) = torch.autograd.grad(identity.sum() + classes.sum(), w)
        assert (float(gradient.abs().max()) > 0.0) is not clamped
    # What the guides see is the same: the image as it would be released.
    torch.testing.assert_close(answers[True], answers[False], rtol=1e-4, atol=1e-4)


def test_guides_in_bf16_answer_in_fp32(models: ModelSet, ends: tuple[Tensor, Tensor]) -> None:
    full, half = guides(models)(ends[0]), guides(models, amp=True)(ends[0])
    for one, other in zip(full, half, strict=True):
        assert other.dtype == torch.float32
        torch.testing.assert_close(other, one, rtol=0.1, atol=0.2)


def test_inferer_walks_from_z(models: ModelSet, prior: LatentPrior) -> None:
    inferer = PlanWalkInferer(guides(models), prior, BalancedObjective(), SHORT, n_points=5)
    z = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(2))
    result = inferer(z, models.generator, LABEL)
    w_a, w_b = (models.generator.mapping(z[:, end], LABEL) for end in range(2))
    torch.testing.assert_close(result["w"][:, 0], w_a)
    torch.testing.assert_close(result["w"][:, -1], w_b)
    torch.testing.assert_close(result["w_linear"], straight_path(w_a, w_b, 5))
    assert result["loss_history"].shape == (3, 5)
    assert set(result["terms"]) == {"identity", "distance", "class", "even", "prior", "real", "loss"}


def test_inferer_walks_from_w(models: ModelSet, prior: LatentPrior, ends: tuple[Tensor, Tensor]) -> None:
    inferer = PlanWalkInferer(guides(models), prior, BalancedObjective(), SHORT, n_points=5, ends_in_w=True)
    result = inferer(torch.stack(ends, dim=1), models.generator, LABEL)
    assert torch.equal(result["w"][:, 0], ends[0])
    assert torch.equal(result["w"][:, -1], ends[1])
    assert torch.equal(result["w_linear"], straight_path(*ends, 5))


def test_a_weightier_prior_holds_the_walk_closer(models: ModelSet, prior: LatentPrior) -> None:
    settings = WalkSettings(steps=40, learning_rate=0.3, cosine=True, tolerance=0.0)
    z = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(2))
    distances = []
    for weight in (0.0, 1000.0):
        objective = BalancedObjective(lambda_class=2.0, lambda_prior=weight)
        inferer = PlanWalkInferer(guides(models), prior, objective, settings, n_points=5)
        distances.append(prior(inferer(z, models.generator, LABEL)["w"][:, 1:-1], LABEL).mean())
    assert distances[1] < 0.5 * distances[0]


def test_published_settings_are_the_authors() -> None:
    settings = PUBLISHED_SETTINGS
    assert (settings.steps, settings.learning_rate) == (500, 0.1)
    assert not settings.cosine
    assert settings.tolerance == 0.0
    objective = PublishedObjective()
    assert (objective.lambda_id, objective.lambda_dist, objective.lambda_class, objective.chunk) == (0.1, 1.0, 1.0, 4)
