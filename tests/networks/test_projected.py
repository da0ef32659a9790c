# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, resnet18
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms.functional import normalize

from bundle.networks.pretrained import TrunkUnavailable
from bundle.networks.projected import ProjectedDiscriminator, _with_details
from bundle.networks.resnet import ResNetStages
from bundle.networks.weights import load_weights, save_weights


def test_stages_equal_torchvisions_network(resnet_file: Path) -> None:
    network = resnet18(weights=None)
    network.load_state_dict(torch.load(resnet_file, weights_only=True))
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    prepared = normalize((images + 1) / 2, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    names = ["layer1", "layer2", "layer3"]
    with torch.no_grad():
        expected = create_feature_extractor(network.eval(), names)(prepared)
    stages = ResNetStages()
    stages.load_imagenet(resnet_file)
    for name, features in zip(names, stages(images), strict=True):
        assert float(features.std()) > 0
        torch.testing.assert_close(features, expected[name], rtol=1e-4, atol=1e-4)


def test_the_shipped_sources_trunk_fits(shared_data: Path) -> None:
    """A file that ends with the third stage and has its batch norms folded is as good as torchvision's."""
    stages = ResNetStages()
    stages.load_imagenet(shared_data / "weights" / "resnet18_conv1_to_layer3_bnfolded.pth")
    features = stages(torch.rand(1, 1, 128, 128) * 2 - 1)
    assert [tuple(feature.shape) for feature in features] == [(1, 64, 32, 32), (1, 128, 16, 16), (1, 256, 8, 8)]


def test_grey_is_repeated() -> None:
    stages = ResNetStages()
    grey = torch.rand(2, 1, 64, 64) * 2 - 1
    for one, three in zip(stages(grey), stages(grey.repeat(1, 3, 1, 1)), strict=True):
        torch.testing.assert_close(one, three)


@pytest.mark.parametrize("resolution", [32, 64, 128, 256])
def test_logits_of_three_resolutions_and_the_pixels(resolution: int) -> None:
    network = ProjectedDiscriminator(side=64)
    logits = network(torch.rand(4, 1, resolution, resolution) * 2 - 1, torch.tensor([0, 1, 0, 1]))
    assert logits.shape == (4, 64)
    assert logits.dtype == torch.float32
    assert float(logits.detach().reshape(4, 4, 16).std(dim=2).min()) > 0


def test_the_label_matters_to_every_part() -> None:
    network = ProjectedDiscriminator(side=64).eval()
    images = torch.rand(2, 1, 64, 64) * 2 - 1
    one, other = (network(images, torch.full((2,), label)).reshape(2, 4, 16) for label in (0, 1))
    assert float((one - other).detach().abs().amax(dim=(0, 2)).min()) > 1e-3


def test_samples_that_are_all_the_same_are_seen() -> None:
    """The minibatch standard deviation tells a batch of equal images from the same images in a mixed batch."""
    network = ProjectedDiscriminator(side=64).eval()
    images, label = torch.rand(4, 1, 64, 64) * 2 - 1, torch.zeros(4, dtype=torch.int64)
    mixed, equal = network(images, label)[0], network(images[:1].expand(4, -1, -1, -1), label)[0]
    assert float((mixed - equal).detach().abs().max()) > 1e-3


def test_the_pixels_are_seen_beside_what_a_blur_takes_away() -> None:
    torch.manual_seed(0)
    network = ProjectedDiscriminator(side=64).eval()
    sharp = torch.rand(2, 1, 64, 64) * 0.1
    blurred = F.avg_pool2d(sharp, 3, stride=1, padding=1, count_include_pad=False)
    assert torch.equal(_with_details(sharp)[:, :1], sharp)
    torch.testing.assert_close(_with_details(sharp)[:, 1:] / 4, sharp - blurred)
    label = torch.tensor([0, 1])
    change = (network(sharp, label) - network(blurred, label)).detach().reshape(2, 4, 16).abs().mean(dim=(0, 2))
    assert float(change[3]) > 0


def test_images_get_gradients_and_the_frozen_part_none() -> None:
    network = ProjectedDiscriminator(side=64).requires_grad_(True)
    images = (torch.rand(2, 1, 64, 64) * 2 - 1).requires_grad_(True)
    network(images, torch.tensor([0, 1])).sum().backward()
    assert images.grad is not None
    assert float(images.grad.abs().min()) >= 0
    assert float(images.grad.flatten(1).norm(dim=1).min()) > 0
    names = [name for name, _ in network.named_parameters()]
    assert names
    assert {name.split(".")[0] for name in names} == {"heads", "pixels"}


def test_each_layer_of_a_head_is_bounded() -> None:
    """Spectral norm: after enough power iterations, the largest singular value of each trained weight is 1."""
    network = ProjectedDiscriminator(side=64)
    label = torch.tensor([0, 1])
    for _ in range(60):
        network(torch.rand(2, 1, 64, 64), label)
    network.eval()
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert len(layers) == (2 + 1 + 0 + 4) + 2 * 4  # of the bodies, and two more in each of the four
    for layer in layers:
        assert float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) == pytest.approx(1.0, abs=0.1)


def test_weights_are_saved_without_the_frozen_network(tmp_path: Path, resnet_file: Path) -> None:
    network = ProjectedDiscriminator(side=64)
    network.load_imagenet(resnet_file)
    save_weights(network, tmp_path / "discriminator.pt", {})
    assert not any(key.startswith("trunk.") for key in torch.load(tmp_path / "discriminator.pt", weights_only=True))
    again, _ = load_weights(tmp_path / "discriminator.pt")
    assert isinstance(again, ProjectedDiscriminator)
    again.load_imagenet(resnet_file)
    images, label = torch.rand(2, 1, 64, 64) * 2 - 1, torch.tensor([0, 1])
    torch.testing.assert_close(again(images, label), network.eval()(images, label), rtol=0.02, atol=0.02)


def test_refuses_a_side_that_is_not_a_power_of_two() -> None:
    with pytest.raises(ValueError, match="100 is not one of"):
        ProjectedDiscriminator(side=100)


def broken(state: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    if how == "other network":
        return {"features.0.weight": torch.zeros(2)}
    if how == "no third stage":
        return {key: value for key, value in state.items() if not key.startswith("layer3")}
    return {**state, "conv1.weight": torch.zeros(64, 1, 7, 7)}


@pytest.mark.parametrize("how", ["other network", "no third stage", "other width"])
def test_a_file_of_other_weights_is_named_with_the_cure(tmp_path: Path, resnet_file: Path, how: str) -> None:
    path = tmp_path / "other.pth"
    torch.save(broken(torch.load(resnet_file, weights_only=True), how), path)
    with pytest.raises(TrunkUnavailable, match=r"resnet18_file .*other\.pth does not hold ResNet18.*Name the file"):
        ProjectedDiscriminator().load_imagenet(path)


def test_without_internet_both_cures_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", offline)
    with pytest.raises(TrunkUnavailable, match=r"internet.*resnet18_file"):
        ProjectedDiscriminator().load_imagenet()
