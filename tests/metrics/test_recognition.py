# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from bundle.metrics.recognition import (
    UNSEEN_CHANGES,
    divergence_from_uniform,
    highest_probability,
    recognition_scores,
    recognition_threshold,
)


def logits_of(probabilities: list[float]) -> Tensor:
    """Logits of a two-class softmax whose highest probabilities are the given ones."""
    p = torch.tensor(probabilities, dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()], dim=1)


def test_threshold_is_the_95th_percentile_of_the_highest_probabilities() -> None:
    # 21 values: 0.95 * 20 = 19, so the 20th smallest, without interpolation.
    values = [0.5 + 0.02 * i for i in range(21)]
    assert recognition_threshold(logits_of(values)) == pytest.approx(0.5 + 0.02 * 19)
    # 2 values: a twentieth of the way below the larger one.
    assert recognition_threshold(logits_of([0.6, 0.8])) == pytest.approx(0.6 + 0.95 * 0.2)


def test_threshold_without_val_images_is_an_error_with_the_cure() -> None:
    with pytest.raises(ValueError, match="val split is empty"):
        recognition_threshold(torch.empty(0, 3))


def test_divergence_from_uniform_of_a_hand_computed_case() -> None:
    uniform, sure = torch.zeros(1, 4), torch.tensor([[math.log(0.7), *[math.log(0.1)] * 3]])
    assert divergence_from_uniform(uniform).item() == pytest.approx(0.0, abs=1e-6)
    expected = 0.25 * math.log(0.25 / 0.7) + 0.75 * math.log(0.25 / 0.1)
    assert divergence_from_uniform(sure).item() == pytest.approx(expected, abs=1e-6)
    assert highest_probability(sure).item() == pytest.approx(0.7)


@pytest.mark.parametrize("name", sorted(UNSEEN_CHANGES))
@pytest.mark.parametrize("channels", [1, 3])
def test_unseen_changes_change_every_image_and_are_the_same_every_time(name: str, channels: int) -> None:
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, channels, 6, 6, generator=random) * 1.6 - 0.8
    images = nn.functional.interpolate(coarse, size=(48, 48), mode="bilinear")
    kept = images.clone()
    changed = UNSEEN_CHANGES[name](images)
    assert changed.shape == images.shape
    assert changed.isfinite().all()
    assert torch.equal(images, kept)
    assert torch.equal(UNSEEN_CHANGES[name](images), changed)
    assert ((changed - images).abs().mean(dim=(1, 2, 3)) > 1e-3).all()
    assert ((changed - images).abs().mean(dim=(1, 2, 3)) < 0.8).all()


class Lookup(nn.Module):
    """Knows three pictures by heart: sure of the one that an image correlates with, of none of them below 0.9."""

    def __init__(self, pictures: Tensor) -> None:
        super().__init__()
        self.pictures = nn.Parameter(nn.functional.normalize(pictures.flatten(1) - pictures.flatten(1).mean(1, True)))

    def forward(self, image: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            flat = image.float().flatten(1)
            correlation = nn.functional.normalize(flat - flat.mean(1, True)) @ self.pictures.T
        return 50.0 * (correlation - 0.5).relu()


def test_scores_of_a_classifier_that_knows_its_pictures_by_heart() -> None:
    random = torch.Generator().manual_seed(0)
    pictures = torch.rand(23, 1, 8, 8, generator=random) * 2 - 1
    known, val, test = pictures[:3], pictures[3:13], pictures[13:]
    scores = recognition_scores(Lookup(known), known, torch.arange(3), val, test)
    assert scores["top1"] == 1.0
    assert scores["top1_unseen"]["brightness by 0.5 (beyond)"] == 1.0
    assert scores["highest_probability"]["train"] > 0.99
    assert scores["highest_probability"]["test"] < 0.5
    assert scores["identity_divergence"]["val"] < 0.1 < scores["identity_divergence"]["train"]
    assert scores["sensitivity"]["train"] == 1.0
    assert scores["auroc"]["train"] == 1.0
    assert 0.0 <= scores["false_alarms"] <= 1.0
    without_test = recognition_scores(Lookup(known), known, torch.arange(3), val)
    assert "false_alarms" not in without_test
    assert without_test["threshold"] == scores["threshold"]


def test_the_threshold_is_calibrated_in_fp32_as_the_gate_applies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bundle.precision.computes_in_bf16", lambda device: True)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 3)).eval()
    images = torch.rand(21, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    threshold = recognition_scores(network, images[:3], torch.arange(3), images)["threshold"]
    with torch.no_grad():  # of 21 images, the 95th percentile is that of the 20th
        assert threshold == pytest.approx(float(highest_probability(network(images)).sort().values[19]), rel=1e-6)
