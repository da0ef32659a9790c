# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, roc_auc_score
from torch import Tensor

from bundle.auditing.resampling import patient_draws
from bundle.data import get_modality
from bundle.evaluation.utility import (
    ClassifierSettings,
    accuracy_estimates,
    classifier_settings,
    classify,
    fitted_shortcuts,
    label_estimates,
    shortcut_estimates,
    train_classifier,
)
from bundle.training.gradients import DivergedError

SETTINGS = ClassifierSettings(epochs=10, batch_size=16, side=24)


def discs(n: int, seed: int, channels: int = 1, side: int = 24) -> tuple[Tensor, Tensor]:
    """Noise with a light disc above (0) or below (1), uint8, and which."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    labels = np.arange(n) % 2
    middle = side * (0.3 + 0.4 * labels)[:, None, None]
    disc = (rows - middle) ** 2 + (columns - side / 2) ** 2 < (side / 5) ** 2
    pixels = random.integers(0, 100, (n, side, side)) + 120 * disc
    images = torch.from_numpy(pixels.astype(np.uint8))
    return (images if channels == 1 else images[..., None].expand(-1, -1, -1, 3)), torch.from_numpy(labels)


@pytest.mark.parametrize("channels", [1, 3])
def test_classifier_learns_and_is_tried_on_other_images(channels: int) -> None:
    network = train_classifier(*discs(96, 0, channels), 2, SETTINGS, seed=0)
    pixels, labels = discs(60, 1, channels)
    assert not network.training
    logits = classify(network, pixels, SETTINGS)
    assert logits.shape == (60, 2)
    assert float((logits.argmax(dim=1) == labels).float().mean()) > 0.9


@pytest.mark.parametrize("pretrained", [False, True])
def test_seed_decides_and_nothing_else(pretrained: bool, squeezenet_file: Path) -> None:
    pixels, labels = discs(40, 0, channels=3, side=32)
    settings = ClassifierSettings(epochs=1, batch_size=16, side=24, pretrained=pretrained)
    logits = []
    for seed in (0, 0, 1):
        torch.rand(7)  # whatever was drawn before
        network = train_classifier(pixels, labels, 2, settings, seed, squeezenet_file=squeezenet_file)
        logits.append(classify(network, pixels, settings))
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2])


def test_classifiers_of_a_modality_that_asks_for_it_start_from_imagenet_weights(squeezenet_file: Path) -> None:
    assert classifier_settings(get_modality("xray"), 7) == ClassifierSettings(epochs=7)
    settings = classifier_settings(get_modality("fundus"), 1)
    assert (settings.epochs, settings.pretrained) == (1, True)
    pixels, labels = discs(32, 0, channels=3, side=32)
    network = train_classifier(pixels, labels, 2, settings, seed=0, squeezenet_file=squeezenet_file)
    kernel = torch.load(squeezenet_file, weights_only=True)["features.0.weight"]
    found = network.state_dict()["trunk.features.0.weight"]
    assert 0 < float((found - kernel).abs().max()) < 0.01  # one epoch away
    assert classify(network, pixels, settings).shape == (32, 2)


def test_class_without_an_image_is_refused() -> None:
    pixels, labels = discs(20, 0)
    with pytest.raises(ValueError, match="cannot learn class 2: none of the 20 images"):
        train_classifier(pixels, labels, 3, SETTINGS, seed=0)


def test_images_too_small_for_the_network_are_refused() -> None:
    with pytest.raises(ValueError, match="Images of 16 pixels are too small for a classifier: use 17 or more"):
        train_classifier(*discs(20, 0, side=24), 2, replace(SETTINGS, side=16), seed=0)


def test_classifier_that_diverges_is_no_classifier() -> None:
    with pytest.raises(DivergedError, match=r"The gradient of the classifier is (nan|inf) in iteration"):
        train_classifier(*discs(20, 0), 2, replace(SETTINGS, learning_rate=1e38), seed=0)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_accuracy_figures(num_classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, num_classes, (120,), generator=generator)
    logits = torch.randn(120, num_classes, generator=generator)
    logits[torch.arange(120), labels] += 1.0
    found = accuracy_estimates(logits, labels, patient_draws(torch.arange(120), 200, 0))
    named, p = logits.argmax(dim=1).numpy(), logits.double().softmax(dim=1).numpy()
    score = p[:, 1] if num_classes == 2 else p
    assert found["accuracy"].value == pytest.approx(float((named == labels.numpy()).mean()))
    assert found["balanced_accuracy"].value == pytest.approx(balanced_accuracy_score(labels, named))
    assert found["auc"].value == pytest.approx(roc_auc_score(labels, score, multi_class="ovr"))
    assert all(estimate.low < estimate.value < estimate.high for estimate in found.values())
    assert "kappa" not in found
    graded = accuracy_estimates(logits, labels, patient_draws(torch.arange(120), 200, 0), ordered=True)
    assert {key: estimate for key, estimate in graded.items() if key != "kappa"} == found
    assert graded["kappa"].value == pytest.approx(cohen_kappa_score(labels, named, weights="quadratic"))
    assert graded["kappa"].low < graded["kappa"].value < graded["kappa"].high


def test_grades_in_order_rise_and_two_swapped_ones_fall() -> None:
    labels = torch.arange(90) % 3
    draws = patient_draws(torch.arange(90), 50, 0)
    logits = torch.eye(3)[labels].log().clamp_min(-30)  # sure of the label
    found = label_estimates(logits, labels, draws, ordered=True)
    assert found["label_accuracy"].value == found["label_kappa"].value == 1.0
    assert found["grade_rise"].value == pytest.approx(1.0)
    swapped = label_estimates(logits, torch.tensor([1, 0, 2])[labels], draws, ordered=True)
    assert swapped["label_accuracy"].value == pytest.approx(1 / 3)
    assert swapped["grade_rise"].value == pytest.approx(-1.0)
    flat = label_estimates(torch.zeros(90, 3), labels, draws, ordered=True)["grade_rise"]
    assert (flat.value, flat.low, flat.high) == pytest.approx((0, 0, 0))

    assert set(label_estimates(logits, labels, draws)) == {"label_accuracy", "label_balanced_accuracy", "label_auc"}
    lacking = label_estimates(logits, labels.clamp_max(1), draws, ordered=True)["grade_rise"]
    assert "some grades have no image" in lacking.reason


def test_class_without_a_test_image_leaves_the_auc_open() -> None:
    found = accuracy_estimates(
        torch.randn(30, 2), torch.zeros(30, dtype=torch.int64), patient_draws(torch.arange(30), 9, 0)
    )
    assert "1 of the classes have no test image" in found["auc"].reason
    assert not found["accuracy"].reason


def test_shortcut_sees_brightness_and_is_tried_on_test_images() -> None:
    random = np.random.default_rng(0)
    labels = torch.arange(80) % 2
    pixels = (
        torch.from_numpy(random.integers(0, 128, (80, 32, 32), dtype=np.uint8)) + (100 * labels).byte()[:, None, None]
    )
    draws = patient_draws(torch.arange(40), 50, 0)
    shortcuts = fitted_shortcuts(pixels[:40], labels[:40], seed=0)
    found = shortcut_estimates(shortcuts, pixels[40:], labels[40:], draws)
    assert found["statistics_accuracy"].value == found["random_trunk_accuracy"].value == 1.0
    wrong = shortcut_estimates(shortcuts, pixels[40:], 1 - labels[40:], draws)
    assert wrong["statistics_auc"].value == 0.0
