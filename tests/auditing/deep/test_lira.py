# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The likelihood ratio on scores whose leak is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bundle.auditing.deep.attack import mean_estimate, roc_estimates
from bundle.auditing.deep.findings import membership_attack, ratios
from bundle.auditing.deep.lira import fit, leave_one_out, log_likelihood_ratio, standardised
from bundle.auditing.deep.shadows import Pool, draw_halves

IMAGES = 300


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bundle.auditing.deep.attack.DRAWS", 100)


def pool(n: int = IMAGES) -> Pool:
    """Patients with one or two images each, of two classes."""
    patients = torch.arange(n) - (torch.arange(n) % 3 == 1).long()
    return Pool(torch.zeros(n, 2, 2, dtype=torch.uint8), patients % 2, patients.unique(return_inverse=True)[1])


def simulated(n_shadows: int, leak: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores of shadows that come nearer to their members by ``leak``, on images and generators that differ."""
    random = torch.Generator().manual_seed(seed)
    member = draw_halves(pool(), n_shadows, seed)
    image = 3 * torch.randn(IMAGES, generator=random)
    generator = torch.randn(n_shadows, 1, generator=random)
    noise = torch.randn(n_shadows, IMAGES, generator=random)
    return image + generator + noise + leak * member, member


def auc(scores: Tensor, member: Tensor) -> tuple[float, float, float]:
    found = roc_estimates(leave_one_out(standardised(scores), member), member, pool().patients, 0)["auc"]
    return found.value, found.low, found.high


def test_halves_hold_whole_patients_of_every_class_and_differ() -> None:
    mine = pool()
    member = draw_halves(mine, 6, 0)
    for row in member:
        inside, outside = set(mine.patients[row].tolist()), set(mine.patients[~row].tolist())
        assert not inside & outside
        assert abs(len(inside) - len(outside)) <= 4
        assert 0.4 < float(row[mine.labels == 0].double().mean()) < 0.6
    assert len({tuple(row.tolist()) for row in member}) == 6
    assert torch.equal(member, draw_halves(mine, 6, 0))


@pytest.mark.parametrize("n_shadows", [2, 3, 8])
def test_recipe_that_leaks_is_found_with_few_shadows(n_shadows: int) -> None:
    value, low, _ = auc(*simulated(n_shadows, 1.5))
    assert value > 0.65
    assert low > 0.5


def test_more_shadows_find_more() -> None:
    assert auc(*simulated(16, 1.5))[0] > auc(*simulated(3, 1.5))[0]
    # With means that are known well, the ratio is the best test there is: AUC of two normal distributions.
    assert auc(*simulated(32, 1.5))[0] == pytest.approx(0.84, abs=0.03)


def test_shadows_that_do_not_leak_are_not_found() -> None:
    for seed in range(3):
        _, low, high = auc(*simulated(8, 0.0, seed))
        assert low <= 0.5 <= high


def test_single_images_that_leak_are_found_where_others_do_not() -> None:
    scores, member = simulated(32, 0.0)
    scores[:, :30] += 6.0 * member[:, :30]
    found = leave_one_out(standardised(scores), member)
    few = roc_estimates(found[:, :90], member[:, :90], pool().patients[:90], 0)
    assert few["auc"].value > 0.6
    fitted = fit(standardised(scores), member)
    effect = fitted.mean_in - fitted.mean_out
    assert float(effect[:30].min()) > float(effect[30:].max())


def test_image_without_a_shadow_on_one_side_gets_the_common_effect() -> None:
    scores, member = simulated(6, 2.0)
    member[:, 0], member[:, 1] = True, False
    fitted = fit(scores, member)
    effect = fitted.mean_in - fitted.mean_out
    assert effect[0] == pytest.approx(float(effect[1]))
    assert float(effect[0]) == pytest.approx(2.0, abs=0.5)


def test_own_variance_is_used_where_there_are_many_shadows() -> None:
    scores, member = simulated(120, 1.0)
    scores[:, 0] *= 10.0
    fitted = fit(scores, member)
    assert float(fitted.variance_out[0]) > 20 * float(fitted.variance_out[1:].max())
    few = fit(scores[:8], member[:8])
    assert float(few.variance_out.max()) == float(few.variance_out.min())


def test_ratio_is_that_of_two_normal_densities() -> None:
    fitted = fit(*simulated(12, 1.0))
    x = torch.randn(IMAGES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    densities = [
        torch.distributions.Normal(mean, variance.sqrt()).log_prob(x)
        for mean, variance in ((fitted.mean_in, fitted.variance_in), (fitted.mean_out, fitted.variance_out))
    ]
    torch.testing.assert_close(log_likelihood_ratio(x, fitted), densities[0] - densities[1])


def report(leak: float, relabelled: Tensor, memorised: float) -> dict[str, bool | None]:
    scores, member = simulated(8, leak)
    target, inside = simulated(1, memorised, 9)[0][0], draw_halves(pool(), 1, 9)[0]
    same = scores.mean(dim=0) + memorised * inside + 0.3 * (target - target.mean()) / target.std()
    found = ratios({"lpips": scores}, member, {"lpips": same}), inside
    attack = membership_attack({"lpips": scores}, member, relabelled, pool().patients, "there is none", found, 0)
    assert {row.key: row.estimate.reason for row in attack.rows}["audited_lpips_auc"] == "there is none"
    return {control.key: control.passed for control in attack.controls} | {"usable": attack.usable}


def test_controls_pass_where_the_attack_works() -> None:
    other = draw_halves(pool(), 8, 77)
    assert report(1.0, other, 5.0) == {"relabelled": True, "memorised": True, "usable": True}


def test_control_of_random_halves_fails_where_labels_leak_into_scores() -> None:
    member = draw_halves(pool(), 8, 0)
    assert report(1.0, member, 5.0)["relabelled"] is False


def test_control_of_the_memoriser_fails_where_the_attack_is_blind() -> None:
    assert report(1.0, draw_halves(pool(), 8, 77), 0.0) == {"relabelled": True, "memorised": False, "usable": False}


def test_nothing_is_said_of_fewer_than_twenty_images() -> None:
    member = torch.arange(40)[None] < 19
    found = roc_estimates(torch.randn(1, 40), member, torch.arange(40), 0)
    assert all("at least 20 images" in value.content()["not_estimable"] for value in found.values())
    assert mean_estimate([found["auc"]] * 2) == found["auc"]


def test_rates_that_are_less_than_one_image_are_not_estimated() -> None:
    scores, member = torch.randn(1, 60), torch.arange(60)[None] < 30
    found = roc_estimates(scores, member, torch.arange(60), 0)
    assert "less than one image" in found["tpr_1"].reason
    assert not found["tpr_5"].reason
