# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from bundle.metrics.copies import PLANTED_CHANGES
from bundle.training.classifier_augment import (
    AUDIT_CHANGES,
    GATE_CHANGES,
    GUIDE_CHANGES,
    augment_for_audit,
    augment_for_gate,
    augment_for_guide,
    blend_patients,
    mix_patients,
)

#: Changes that are factors: 1 is none.
FACTORS = ("scale", "aspect", "contrast", "balance")


@pytest.mark.parametrize("augment", [augment_for_guide, augment_for_gate, augment_for_audit])
@pytest.mark.parametrize("channels", [1, 3])
def test_changed_images_stay_in_range_and_depend_on_the_seed_alone(
    augment: Callable[[Tensor], Tensor], channels: int
) -> None:
    images = torch.rand(6, channels, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.manual_seed(1)
    first = augment(images)
    torch.manual_seed(1)
    assert torch.equal(augment(images), first)
    torch.manual_seed(2)
    assert not torch.equal(augment(images), first)
    assert first.shape == images.shape
    assert first.min() >= -1
    assert first.max() <= 1


def test_guides_and_gate_train_on_different_changes() -> None:
    assert set(GUIDE_CHANGES) & set(GATE_CHANGES) == {"mirror", "rotation", "shift", "scale"}


def test_the_audit_trains_on_every_planted_change_but_one_family_and_at_other_strengths() -> None:
    for other in (GUIDE_CHANGES, GATE_CHANGES):
        same = {name for name in AUDIT_CHANGES.keys() & other.keys() if AUDIT_CHANGES[name] == other[name]}
        assert same < {"mirror", "rotation", "contrast", "gamma"}
    assert not any("jpeg" in name.casefold() for name in AUDIT_CHANGES)
    assert any("JPEG" in name for name in PLANTED_CHANGES)


def test_guides_see_half_of_the_images_with_fewer_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(GUIDE_CHANGES):
        if name != "coarseness":
            monkeypatch.setitem(GUIDE_CHANGES, name, 1.0 if name in FACTORS else 0.0)
    board = (torch.arange(32).view(-1, 1) + torch.arange(32)).remainder(2).mul(2.0).sub(1.0)
    deviations = []
    for seed in range(40):
        torch.manual_seed(seed)
        deviations.append(augment_for_guide(board.expand(8, 1, 32, 32)).std(dim=(1, 2, 3)))
    kept = torch.cat(deviations)
    assert 0.35 < float((kept > 0.99).double().mean()) < 0.65
    assert float((kept < 0.2).double().mean()) > 0.25  # the finest pattern is gone as soon as 1.5 pixels make one


def test_guides_see_the_channels_of_colour_images_change_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in set(GUIDE_CHANGES) - {"tint"}:
        monkeypatch.setitem(GUIDE_CHANGES, name, 1.0 if name in (*FACTORS, "coarseness") else 0.0)
    torch.manual_seed(0)
    added = augment_for_guide(torch.zeros(200, 3, 16, 16)).mean(dim=(2, 3))
    assert 0.9 * GUIDE_CHANGES["tint"] < float(added.abs().amax()) <= GUIDE_CHANGES["tint"]
    assert float(torch.corrcoef(added.T).fill_diagonal_(0.0).abs().max()) < 0.3
    assert torch.equal(augment_for_guide(torch.zeros(8, 1, 16, 16)), torch.zeros(8, 1, 16, 16))


def test_the_gate_sees_images_without_their_darkest_and_brightest_values(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("rotation", "shear", "shift", "blur", "sharpening", "erased"):
        monkeypatch.setitem(GATE_CHANGES, name, 0.0)
    for name in ("scale", "gamma"):
        monkeypatch.setitem(GATE_CHANGES, name, 1.0)
    torch.manual_seed(0)
    ramp = torch.linspace(-1.0, 1.0, 32).expand(400, 1, 32, 32)
    changed = augment_for_gate(ramp)
    low, high = changed.amin(dim=(1, 2, 3)), changed.amax(dim=(1, 2, 3))
    for lost in (low + 1.0, 1.0 - high):
        assert float(lost.max()) == pytest.approx(GATE_CHANGES["clipped"], abs=0.05)
        assert 0.4 < float((lost < 5e-3).double().mean()) < 0.6
    inside = (ramp > low.view(-1, 1, 1, 1)) & (ramp < high.view(-1, 1, 1, 1))
    straight = torch.where((changed - ramp).abs() < (changed - ramp.flip(3)).abs(), ramp, ramp.flip(3))
    assert float(((changed - straight).abs() < 1e-4)[inside].double().mean()) > 0.9


def test_two_of_three_images_of_the_gate_are_blurred_and_at_most_as_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("rotation", "shear", "shift", "clipped", "sharpening", "erased"):
        monkeypatch.setitem(GATE_CHANGES, name, 0.0)
    for name in ("scale", "gamma"):
        monkeypatch.setitem(GATE_CHANGES, name, 1.0)
    point = torch.full((1200, 1, 64, 64), -1.0)
    point[:, :, 32, 32] = 1.0
    torch.manual_seed(0)
    highest = augment_for_gate(point).amax(dim=(1, 2, 3))
    sharp = highest > 0.99
    assert 0.35 < float(sharp.double().mean()) < 0.6  # a third, and the weakest blurs
    least = gaussian_blur(point[:1], [9, 9], [GATE_CHANGES["blur"] * 64] * 2).amax()
    assert float(highest.min()) == pytest.approx(float(least), abs=0.05)


def test_every_second_image_is_blended_with_another_one() -> None:
    images = torch.arange(400.0).div(200).sub(1).view(400, 1, 1, 1).expand(400, 1, 4, 4)
    torch.manual_seed(0)
    blended = blend_patients(images, 0.4)
    other = images.roll(1, dims=0)
    share = ((blended - images) / (other - images))[:, 0, 0, 0]
    assert 0.4 < float((share > 0).double().mean()) < 0.6
    assert 0.38 < float(share.max()) <= 0.4
    assert torch.equal(blend_patients(images, 0.0), images)


def test_mixed_patients_have_the_squared_shares_and_the_rest_is_nobody() -> None:
    images = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for seed in range(20):
        torch.manual_seed(seed)
        mixed, wanted = mix_patients(images, torch.arange(5), 50)
        assert mixed.shape == images.shape
        assert mixed.abs().max() <= 1
        assert wanted.min() >= 0
        torch.testing.assert_close(wanted.sum(dim=1), torch.ones(5))
        strangers = wanted[:, 5:]
        torch.testing.assert_close(strangers, strangers[:, :1].expand_as(strangers))
        shares = (wanted[:, :5] - strangers[:, :1]).clamp(min=0).sqrt()
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(5), atol=5e-3, rtol=0)


def test_a_mixture_of_one_patient_with_himself_is_that_patient() -> None:
    image = torch.linspace(-0.9, 0.9, 256).view(1, 1, 16, 16)
    mixed, wanted = mix_patients(image.expand(3, 1, 16, 16), torch.tensor([7, 7, 7]), 10)
    torch.testing.assert_close(mixed[0], image[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(wanted, torch.nn.functional.one_hot(torch.tensor([7, 7, 7]), 10).float())
