# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bundle.training import augment as module
from bundle.training.augment import AdaptiveAugment


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def smooth_images(n: int, side: int = 32) -> Tensor:
    """Discs with soft edges, [n, 1, side, side] in [-1, 1]."""
    axis = torch.linspace(-1.0, 1.0, side)
    radius = (axis.view(-1, 1) ** 2 + (axis.view(1, -1) - 0.2) ** 2).sqrt()
    return torch.tanh(4.0 * (0.6 - radius)).expand(n, 1, side, side).contiguous()


def test_p_zero_is_the_identity() -> None:
    images = torch.rand(4, 1, 8, 8)
    assert AdaptiveAugment(p=0.0)(images) is images


def test_p_one_changes_every_image_and_each_differently() -> None:
    images = smooth_images(8)
    out = AdaptiveAugment(p=1.0, target=None)(images)
    assert out.shape == images.shape
    assert bool(((out - images).abs().amax(dim=(1, 2, 3)) > 0.01).all())
    assert len({float(image.sum()) for image in out}) == 8


def test_share_of_changed_images_follows_p() -> None:
    images = smooth_images(2000, 8)
    unchanged = (AdaptiveAugment(p=0.1, target=None)(images) - images).abs().amax(dim=(1, 2, 3)) < 1e-4
    # Six transformations, each left out with probability 0.9; the standard error is 0.011.
    assert float(unchanged.float().mean()) == pytest.approx(0.9**6, abs=0.05)


def test_transformations_are_right_on_average() -> None:
    """Nothing drifts: mean brightness, and the place of the disc, are kept on average."""
    images = smooth_images(1500, 32)
    out = AdaptiveAugment(p=1.0, target=None)(images)
    weights = (out.clamp(-1, 1) + 1.0).mean(dim=(0, 1))
    axis = torch.linspace(-1.0, 1.0, 32)
    centre = torch.tensor([(weights * axis).sum(), (weights.T * axis).sum()]) / weights.sum()
    original = (images[0, 0] + 1.0) / (images[0, 0] + 1.0).sum()
    expected = torch.stack([(original * axis).sum(), (original.T * axis).sum()])
    assert float((centre - expected).abs().max()) < 0.05
    grey = torch.zeros(2000, 1, 4, 4)
    # Brightness times contrast: mean 0, standard error 0.2 * 1.13 / sqrt(2000).
    assert abs(float(AdaptiveAugment(p=1.0, target=None)(grey).mean())) < 0.02


def test_strengths_are_those_of_the_table() -> None:
    """Brightness is read off black images, contrast off the spread of images with two values."""
    augment = AdaptiveAugment(p=1.0, target=None)
    colour = augment._colour(torch.tensor([-0.5, 0.5]).view(1, 1, 1, 2).expand(4000, 1, 2, 2), 1.0)
    contrast = colour[:, 0, 0, 1] - colour[:, 0, 0, 0]
    assert float(contrast.log2().std()) == pytest.approx(module.LOG2_CONTRAST, rel=0.05)
    brightness = (colour[:, 0, 0, 1] + colour[:, 0, 0, 0]) / 2 / contrast
    assert float(brightness.std()) == pytest.approx(module.BRIGHTNESS, rel=0.05)
    assert abs(float(brightness.mean())) < 0.02


def test_geometry_takes_no_mirror_image() -> None:
    ramp = torch.linspace(-1.0, 1.0, 32).view(1, 1, 1, 32).expand(200, 1, 32, 32)
    out = AdaptiveAugment(p=1.0, target=None)._geometry(ramp, 1.0)[:, 0, 12:20]
    assert bool((out[:, :, 20].mean(dim=1) > out[:, :, 12].mean(dim=1)).all())


def test_shift_is_in_shares_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOG2_SCALE", "LOG2_ASPECT", "ROTATION"):
        monkeypatch.setattr(module, name, 0.0)
    monkeypatch.setattr(torch, "randn", lambda *shape, device=None: torch.ones(*shape))
    images = torch.randn_like(torch.empty(1, 1, 16, 16))
    out = AdaptiveAugment(p=1.0, target=None)._geometry(images, 1.0)
    # One standard deviation, an eighth of 16 pixels, up and to the left; what is beyond the edge is mirrored.
    torch.testing.assert_close(out[..., :14, :14], images[..., 2:, 2:], atol=1e-5, rtol=0)
    torch.testing.assert_close(out[..., 14:, :14], images[..., [15, 14], 2:], atol=1e-5, rtol=0)


def test_rotation_does_not_shear(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotation alone keeps a disc in the middle what it is."""
    for name in ("LOG2_SCALE", "LOG2_ASPECT", "TRANSLATION"):
        monkeypatch.setattr(module, name, 0.0)
    monkeypatch.setattr(module, "ROTATION", math.radians(40.0))
    axis = torch.linspace(-1.0, 1.0, 33)
    disc = torch.tanh(4.0 * (0.5 - (axis.view(-1, 1) ** 2 + axis.view(1, -1) ** 2).sqrt())).view(1, 1, 33, 33)
    out = AdaptiveAugment(p=1.0, target=None)._geometry(disc.expand(8, -1, -1, -1), 1.0)
    assert float((out - disc).abs()[..., 6:-6, 6:-6].max()) < 0.05


def test_differentiable() -> None:
    """Given its draws, the augmentation is affine in the image: the gradient gives any difference exactly."""
    augment = AdaptiveAugment(p=1.0, target=None)

    def repeatable(images: Tensor) -> Tensor:
        torch.manual_seed(1)
        return augment(images)

    images, step = torch.rand(3, 1, 9, 9, requires_grad=True), torch.randn(3, 1, 9, 9)
    weights = torch.randn(3, 1, 9, 9)
    (gradient,) = torch.autograd.grad((repeatable(images) * weights).sum(), images)
    change = ((repeatable(images.detach() + step) - repeatable(images.detach())) * weights).sum(dim=(1, 2, 3))
    torch.testing.assert_close((gradient * step).sum(dim=(1, 2, 3)), change, rtol=1e-4, atol=1e-4)
    assert float(gradient.abs().amin(dim=0).max()) > 0.0


def test_bf16_is_augmented_in_fp32() -> None:
    assert AdaptiveAugment(p=1.0, target=None)(smooth_images(2).bfloat16()).dtype == torch.float32


def test_p_follows_the_sign_statistic() -> None:
    """kimg=1: p moves by (images since the last adjustment) / 1000, up where r_t is above the target, else down."""
    augment = AdaptiveAugment(p=0.5, target=0.5, kimg=1.0, interval=2)
    half = torch.tensor([3.0, 0.1, 2.0, -9.0, -0.1, 5.0, 7.0, 8.0])  # mean sign 0.5
    positive = torch.full((8,), 0.01)
    augment.update(positive, 1)
    assert float(augment.p) == 0.5
    augment.update(half, 2)  # r_t = (8 + 4) / 16 = 0.75 > 0.5: up by 16 / 1000
    assert float(augment.p) == pytest.approx(0.516)
    augment.update(half, 3)
    augment.update(half, 4)  # r_t = 0.5, not above: down by as much; the first two iterations are forgotten
    assert float(augment.p) == pytest.approx(0.500)
    augment.update(-positive, 5)
    augment.update(-positive, 6)
    assert float(augment.p) == pytest.approx(0.484)


def test_p_would_go_from_zero_to_one_in_kimg_and_stays_where_augmentation_does_not_leak() -> None:
    augment = AdaptiveAugment(p=0.0, target=0.6, kimg=0.1, interval=1)
    augment.update(torch.full((10,), -1.0), 1)
    assert float(augment.p) == 0.0
    for iteration in range(2, 10):
        assert float(augment.p) == pytest.approx((iteration - 2) * 0.1)
        augment.update(torch.full((10,), 1.0), iteration)
    augment.update(torch.full((10,), 1.0), 10)
    assert float(augment.p) == pytest.approx(0.8)


def test_fixed_rate_stays() -> None:
    augment = AdaptiveAugment(p=0.3, target=None, kimg=0.001, interval=1)
    augment.update(torch.full((10,), 1.0), 1)
    assert float(augment.p) == pytest.approx(0.3)


def test_state_carries_a_half_counted_interval() -> None:
    first, second = (AdaptiveAugment(p=0.5, target=0.5, kimg=1.0, interval=2) for _ in range(2))
    first.update(torch.full((8,), 1.0), 1)
    second.load_state_dict(first.state_dict())
    for augment in (first, second):
        augment.update(torch.full((8,), -0.5), 2)
    assert torch.equal(first.p, second.p)
    assert float(first.p) == pytest.approx(0.484)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"p": 1.5}, "1.5"),
        ({"target": 1.0}, "None keeps p fixed"),
        ({"kimg": 0.0}, "kimg"),
        ({"interval": 0}, "interval"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AdaptiveAugment(**arguments)  # type: ignore[arg-type]


def test_without_colour_grey_values_only_move() -> None:
    """A picture of two grey values keeps to the range between them, at any p; with colour it does not."""
    torch.manual_seed(0)
    images = torch.where(torch.rand(64, 1, 16, 16) < 0.5, -0.25, 0.5)
    geometric = AdaptiveAugment(p=1.0, target=None, colour=False)(images)
    assert not torch.equal(geometric, images)
    assert float(geometric.min()) >= -0.25 - 1e-6
    assert float(geometric.max()) <= 0.5 + 1e-6
    assert float(AdaptiveAugment(p=1.0, target=None)(images).max()) > 0.6
