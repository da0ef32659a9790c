# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torchvision.models import ResNet18_Weights

from bundle.networks.pretrained import TrunkUnavailable
from bundle.networks.projected import ProjectedDiscriminator
from bundle.networks.stylegan2 import Discriminator, Generator
from bundle.networks.weights import WeightsError, save_weights
from bundle.training.discriminators import new_discriminator
from bundle.training.init_from import initialise_gan


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", fail)


def save_gan(folder: Path, discriminator: torch.nn.Module) -> Path:
    save_weights(Generator(32, z_dim=4, w_dim=4, channel_base=256, channel_max=8), folder / "generator.pt", {})
    save_weights(discriminator, folder / "discriminator.pt", {})
    return folder / "generator.pt"


def test_projected_is_filled_and_for_the_number_of_classes(resnet_file: Path) -> None:
    network = new_discriminator("auto", 32, 1, 5, resnet_file)
    assert isinstance(network, ProjectedDiscriminator)
    assert network.arguments["num_classes"] == 5
    other = new_discriminator("projected", 32, 1, 5, resnet_file)
    assert torch.equal(network.get_buffer("trunk.stem.weight"), other.get_buffer("trunk.stem.weight"))


def test_residual_has_the_resolution_and_the_channels() -> None:
    network = new_discriminator("residual", 32, 3, 2)
    assert isinstance(network, Discriminator)
    assert (network.arguments["resolution"], network.arguments["image_channels"]) == (32, 3)


def test_auto_falls_back_aloud(offline: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert isinstance(new_discriminator("auto", 32, 1, 2), Discriminator)
    assert "resnet18_file" in caplog.text
    assert "--discriminator residual" in caplog.text


@pytest.mark.parametrize(("kind", "file"), [("projected", None), ("auto", "absent.pth")])
def test_what_was_asked_for_is_never_replaced(offline: None, kind: str, file: str | None) -> None:
    with pytest.raises(TrunkUnavailable, match="resnet18_file"):
        new_discriminator(kind, 32, 1, 2, file)


@pytest.mark.parametrize("source", [ProjectedDiscriminator(), Discriminator(32)])
def test_auto_takes_the_kind_that_the_weights_have(
    source: torch.nn.Module, tmp_path: Path, resnet_file: Path, offline: None
) -> None:
    init_from = save_gan(tmp_path, source)
    assert type(new_discriminator("auto", 32, 1, 2, resnet_file, init_from)) is type(source)


def test_weights_for_a_projected_one_do_not_make_auto_fall_back(tmp_path: Path, offline: None) -> None:
    with pytest.raises(TrunkUnavailable, match="resnet18_file"):
        new_discriminator("auto", 32, 1, 2, None, save_gan(tmp_path, ProjectedDiscriminator()))


def test_weights_that_are_no_discriminator_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds a Generator, which is no discriminator"):
        new_discriminator("auto", 32, 1, 2, None, save_gan(tmp_path, Generator(32)))


def test_a_projected_discriminator_goes_on_at_a_higher_resolution(tmp_path: Path, resnet_file: Path) -> None:
    source = ProjectedDiscriminator(side=64, channels=4)
    init_from = save_gan(tmp_path, source)
    generator = Generator(64, z_dim=4, w_dim=4, channel_base=256, channel_max=8)
    target = ProjectedDiscriminator(side=64, channels=4)
    target.load_imagenet(resnet_file)
    stem = target.trunk.stem.weight.clone()
    initialise_gan(generator, target, init_from)
    for key, value in source.state_dict().items():
        torch.testing.assert_close(target.state_dict()[key], value, rtol=1e-3, atol=1e-3)
    assert torch.equal(target.trunk.stem.weight, stem)
    with pytest.raises(WeightsError, match="cannot start ProjectedDiscriminator"):
        initialise_gan(generator, ProjectedDiscriminator(side=128, channels=4), init_from)


def test_damaged_discriminator_is_told_before_anything_is_downloaded(tmp_path: Path, offline: None) -> None:
    init_from = save_gan(tmp_path, ProjectedDiscriminator())
    (tmp_path / "discriminator.pt").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"discriminator\.pt is not the file that its JSON describes"):
        new_discriminator("auto", 32, 1, 2, None, init_from)
