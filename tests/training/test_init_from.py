# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser

from bundle.networks.projected import ProjectedDiscriminator
from bundle.networks.stylegan2 import Discriminator, Generator
from bundle.networks.weights import WeightsError, save_weights
from bundle.training.init_from import DEFAULT_RESOLUTION, default_resolution, initialise_gan
from tests.conftest import ROOT


def gan(resolution: int, **options: Any) -> tuple[Generator, Discriminator]:
    common: dict[str, Any] = {"channel_base": 256, "channel_max": 8, "num_classes": 2, **options}
    return Generator(resolution, z_dim=4, w_dim=4, **common), Discriminator(resolution, **common)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    generator, discriminator = gan(32)
    for value in [*generator.parameters(), *discriminator.parameters()]:
        torch.nn.init.normal_(value)  # so that no bias is zero
    save_weights(generator, tmp_path / "generator.pt", {})
    save_weights(discriminator, tmp_path / "discriminator.pt", {})
    return tmp_path / "generator.pt"


def half(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.half().float() for key, value in network.state_dict().items()}


def test_none_leaves_the_networks_as_they_are() -> None:
    generator, discriminator = gan(32)
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    assert initialise_gan(generator, discriminator, None) == (generator, discriminator)
    assert all(torch.equal(value, before[key]) for key, value in generator.state_dict().items())


def test_the_resolution_is_that_of_the_weights_to_start_from(source: Path, tmp_path: Path) -> None:
    assert default_resolution(source) == 32
    assert default_resolution(None) == DEFAULT_RESOLUTION
    assert default_resolution(tmp_path / "none" / "generator.pt") == DEFAULT_RESOLUTION
    source.with_suffix(".json").write_text("[]")
    with pytest.raises(WeightsError, match="format"):
        default_resolution(source)


def test_the_resolution_of_something_else_than_a_generator_is_refused(source: Path) -> None:
    with pytest.raises(WeightsError, match=r"discriminator\.pt holds a Discriminator, which is no generator"):
        default_resolution(source.with_name("discriminator.pt"))
    network = ProjectedDiscriminator(1, 2)
    save_weights(network, source, {})
    with pytest.raises(WeightsError, match=r"generator\.json cannot be used: arguments\.resolution is missing"):
        default_resolution(source)


@pytest.mark.parametrize("damage", ["edited", "deleted"])
def test_damaged_start_is_told_in_one_line_on_the_command_line(source: Path, damage: str, tiny_dataset: Path) -> None:
    json_path = source.with_suffix(".json")
    if damage == "edited":
        json_path.write_text(json_path.read_text().replace('"z_dim": 4', '"z_dim": 5'))
    else:
        json_path.unlink()
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/train_gan.json"]
    options = ["--init_from", str(source), "--dataset_dir", str(tiny_dataset), "--output_dir", str(source.parent / "o")]
    ended = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    words = {"edited": "was changed after it was written", "deleted": "does not exist"}[damage]
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(f"error: {json_path} {words}")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("name", ["train_gan", "train_guides"])
def test_configurations_take_that_resolution(source: Path, name: str) -> None:
    parser = ConfigParser()
    parser.read_config(ROOT / "configs" / f"{name}.json")
    if name == "train_gan":
        parser["init_from"] = str(source)
    else:
        source.parent.joinpath("models").mkdir()
        for file in source.parent.glob("generator.*"):
            file.rename(source.parent / "models" / file.name)
        parser["output_dir"] = str(source.parent)
    assert parser.get_parsed_content("resolution") == 32


def test_same_resolution_takes_everything(source: Path) -> None:
    (one, other), (generator, discriminator) = gan(32), gan(32)
    initialise_gan(one, other, source)
    initialise_gan(generator, discriminator, source)
    for left, right in ((one, generator), (other, discriminator)):
        assert all(torch.equal(value, right.state_dict()[key]) for key, value in left.state_dict().items())
    assert all(parameter.requires_grad for parameter in [*generator.parameters(), *discriminator.parameters()])


@pytest.mark.parametrize("resolution", [64, 128])
def test_grown_generator_draws_the_sources_images_enlarged(source: Path, resolution: int) -> None:
    small, large = gan(32), gan(resolution)
    initialise_gan(*small, source)
    initialise_gan(*large, source)
    z, label = torch.randn(3, 4), torch.tensor([0, 1, 0])
    w = small[0].mapping(z, label)
    assert torch.equal(large[0].mapping(z, label), w)
    image = small[0].synthesis.unclamped(w)
    while image.shape[-1] < resolution:
        image = F.interpolate(image, scale_factor=2.0, mode="bilinear", align_corners=False)
    torch.testing.assert_close(large[0].synthesis.unclamped(w), image, rtol=1e-4, atol=1e-4)


def test_new_blocks_of_the_generator_can_learn(source: Path) -> None:
    generator, discriminator = gan(64)
    initialise_gan(generator, discriminator, source)
    label = torch.tensor([0, 1])
    image = generator.synthesis.unclamped(generator.mapping(torch.randn(2, 4), label))
    (image * torch.randn_like(image)).sum().backward()
    gradient = dict(generator.named_parameters())["synthesis.blocks.64.to_image.conv.weight"].grad
    assert gradient is not None
    assert float(gradient.abs().max()) > 0.0


def test_discriminator_keeps_all_layers_below_the_new_ones(source: Path) -> None:
    small, large = gan(32), gan(64)
    initialise_gan(*small, source)
    fresh = {key: value.clone() for key, value in large[1].state_dict().items()}
    initialise_gan(*large, source)
    state = large[1].state_dict()
    for key, value in small[1].state_dict().items():
        if state[key].shape == value.shape:
            assert torch.equal(state[key], value), key
    new = [key for key in state if key.startswith("blocks.64.")]
    assert new
    assert all(torch.equal(state[key], fresh[key]) for key in new)


@pytest.mark.parametrize(
    "options",
    [{"num_classes": 3}, {"image_channels": 3}, {"channel_max": 4}],
)
def test_other_networks_are_refused(source: Path, options: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match=r"generator\.pt holds Generator.*cannot start.*resolution alone"):
        initialise_gan(*gan(32, **options), source)


def test_shrinking_is_refused(tmp_path: Path) -> None:
    generator, discriminator = gan(64)
    save_weights(generator, tmp_path / "generator.pt", {})
    save_weights(discriminator, tmp_path / "discriminator.pt", {})
    with pytest.raises(WeightsError, match="not in a higher one"):
        initialise_gan(*gan(32), tmp_path / "generator.pt")


def test_weights_of_another_kind_are_refused(source: Path) -> None:
    with pytest.raises(WeightsError, match="holds Discriminator"):
        initialise_gan(*gan(32), source.with_name("discriminator.pt"))


def test_missing_discriminator_is_named(source: Path) -> None:
    source.with_name("discriminator.pt").unlink()
    with pytest.raises(WeightsError, match=r"discriminator\.pt does not exist"):
        initialise_gan(*gan(32), source)
