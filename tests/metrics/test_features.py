# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1
from torchvision.transforms.functional import normalize, resize

from bundle.metrics.features import TrunkUnavailable, squeezenet_features, squeezenet_trunk


def test_equal_torchvisions_network_and_transforms(squeezenet_file: Path) -> None:
    images = torch.rand(3, 3, 48, 40) * 2 - 1
    network = squeezenet1_1(weights=None)
    network.load_state_dict(torch.load(squeezenet_file, weights_only=True))
    prepared = normalize(
        resize((images + 1) / 2, [224, 224], antialias=True), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    with torch.no_grad():
        expected = network.eval().features(prepared).mean(dim=(2, 3))
    features = squeezenet_features(images, squeezenet_file, batch_size=2)
    assert features.shape == (3, 512)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-4)
    assert float(features.std()) > 0


def test_grey_is_repeated_and_batches_do_not_matter(squeezenet_file: Path) -> None:
    grey = torch.rand(5, 1, 32, 32) * 2 - 1
    features = squeezenet_features(grey, squeezenet_file, batch_size=5)
    torch.testing.assert_close(features, squeezenet_features(grey.repeat(1, 3, 1, 1), squeezenet_file, batch_size=2))


def test_leaves_the_global_random_state(squeezenet_file: Path) -> None:
    before = torch.random.get_rng_state()
    squeezenet_features(torch.zeros(1, 1, 32, 32), squeezenet_file)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("content", ["absent", "garbage", "other weights"])
def test_a_wrong_trunk_file_is_named_with_both_cures(tmp_path: Path, content: str) -> None:
    path = tmp_path / "trunk.pth"
    if content == "garbage":
        path.write_bytes(b"not weights")
    elif content == "other weights":
        torch.save({"features.0.weight": torch.zeros(2)}, path)
    with pytest.raises(TrunkUnavailable, match=r"trunk\.pth.*download") as raised:
        squeezenet_trunk(path)
    assert "Name the file" in str(raised.value)


def test_without_internet_both_cures_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(SqueezeNet1_1_Weights, "get_state_dict", offline)
    with pytest.raises(TrunkUnavailable, match=r"internet.*squeezenet_file"):
        squeezenet_trunk()


def test_refuses_other_shapes(squeezenet_file: Path) -> None:
    with pytest.raises(ValueError, match="1 or 3 channels"):
        squeezenet_features(torch.zeros(4, 2, 32, 32), squeezenet_file)
