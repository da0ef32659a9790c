# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18, squeezenet1_1
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms.functional import normalize

from bundle.networks.imagenet_classifier import TRUNKS, ImageNetClassifier
from bundle.networks.pretrained import TrunkUnavailable
from bundle.networks.weights import load_weights, save_weights

BUILDERS = {"resnet18": (resnet18, "layer3"), "squeezenet1_1": (squeezenet1_1, "features")}


@pytest.fixture(params=sorted(TRUNKS))
def trunk(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def file(trunk: str, resnet_file: Path, squeezenet_file: Path) -> Path:
    return {"resnet18": resnet_file, "squeezenet1_1": squeezenet_file}[trunk]


def test_features_are_those_of_torchvisions_network(trunk: str, file: Path) -> None:
    build, last = BUILDERS[trunk]
    whole = build(weights=None)
    whole.load_state_dict(torch.load(file, weights_only=True))
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    prepared = normalize((images + 1) / 2, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    network = ImageNetClassifier(3, 5, trunk)
    network.load_imagenet(file)
    with torch.no_grad():
        expected = create_feature_extractor(whole.eval(), {last: "out"})(prepared)["out"].mean(dim=(2, 3))
        found = network.eval().features(images)
        assert network(images).shape == (2, 5)
    assert float(found.std()) > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_small_images_are_enlarged_for_a_trunk_that_would_leave_a_point_of_them(trunk: str) -> None:
    network = ImageNetClassifier(3, 2, trunk).eval()
    small = torch.rand(2, 3, 32, 32) * 2 - 1
    enlarged = torch.nn.functional.interpolate(small, (64, 64), mode="bilinear")
    with torch.no_grad():
        assert min(network.trunk(enlarged).shape[-2:]) >= 3
        torch.testing.assert_close(network(small), network(enlarged))


def test_grey_is_repeated(trunk: str) -> None:
    network = ImageNetClassifier(1, 2, trunk).eval()
    grey = torch.rand(2, 1, 64, 64) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(network(grey), network(grey.repeat(1, 3, 1, 1)))


def test_everything_is_trained_and_features_are_dropped_in_training_alone(trunk: str) -> None:
    network = ImageNetClassifier(3, 2, trunk)
    images = torch.rand(4, 3, 64, 64) * 2 - 1
    network(images).sum().backward()
    assert all(value.grad is not None for value in network.parameters())
    with torch.no_grad():
        assert float((network.features(images) == 0).double().mean()) > 0.3
        assert torch.equal(network.eval()(images), network(images))


def test_weights_are_kept_and_need_no_other_file(trunk: str, file: Path, tmp_path: Path) -> None:
    network = ImageNetClassifier(3, 5, trunk).eval()
    network.load_imagenet(file)
    save_weights(network, tmp_path / "class_guide.pt", {})
    again, _ = load_weights(tmp_path / "class_guide.pt")
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(images), network(images), rtol=0.02, atol=0.02)


def test_weights_of_another_network_are_refused(trunk: str, resnet_file: Path, squeezenet_file: Path) -> None:
    other = {"resnet18": squeezenet_file, "squeezenet1_1": resnet_file}[trunk]
    with pytest.raises(TrunkUnavailable, match=f"{TRUNKS[trunk].option} .* does not hold"):
        ImageNetClassifier(3, 5, trunk).load_imagenet(other)
