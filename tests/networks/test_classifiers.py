# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from bundle.networks.classifiers import GateClassifier, Guide, NobodyHead
from bundle.networks.weights import load_weights, save_weights


@pytest.mark.parametrize("network_class", [Guide, GateClassifier])
@pytest.mark.parametrize("identity", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_weights_survive_a_file(
    network_class: type[Guide] | type[GateClassifier], identity: bool, channels: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = network_class(channels, 5, identity=identity).eval()
    save_weights(network, tmp_path / "guide.pt", {})
    again, info = load_weights(tmp_path / "guide.pt")
    assert info["network"] == network_class.__name__
    image = torch.rand(2, channels, 32, 32) * 2 - 1
    expected = network.half().float()(image)
    assert expected.shape == (2, 5)
    torch.testing.assert_close(again(image), expected)


@pytest.mark.parametrize("network_class", [Guide, GateClassifier])
def test_a_file_of_900_identities_stays_below_25_megabytes(
    network_class: type[Guide] | type[GateClassifier], tmp_path: Path
) -> None:
    save_weights(network_class(1, 900, identity=True), tmp_path / "guide.pt", {})
    assert (tmp_path / "guide.pt").stat().st_size <= 25_000_000


@pytest.mark.parametrize("network_class", [Guide, GateClassifier])
def test_logits_are_fp32_and_the_image_takes_a_gradient_under_autocast(
    network_class: type[Guide] | type[GateClassifier],
) -> None:
    torch.manual_seed(0)
    network = network_class(1, 4, identity=True).eval().requires_grad_(False)
    image = torch.zeros(2, 1, 32, 32, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(image + torch.rand(2, 1, 32, 32))
    assert logits.dtype == torch.float32
    logits.log_softmax(dim=1)[:, 0].sum().backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()
    assert image.grad.abs().sum() > 0


def test_nobody_head_is_a_softmax_with_a_class_for_nobody_that_is_shared_out() -> None:
    torch.manual_seed(0)
    head = NobodyHead(6, 4).double()
    features = torch.randn(3, 6, dtype=torch.float64)
    cosine = torch.nn.functional.cosine_similarity(features.unsqueeze(1), head.weight.unsqueeze(0), dim=2)
    everybody = torch.cat([head.scale * cosine, (head.scale * head.nobody).expand(3, 1)], dim=1).softmax(dim=1)
    torch.testing.assert_close(head(features).softmax(dim=1), everybody[:, :4] + everybody[:, 4:] / 4)


def test_nobody_head_gives_the_uniform_distribution_far_from_everybody_and_a_name_close_to_somebody() -> None:
    head = NobodyHead(8, 4)
    with torch.no_grad():
        head.weight.copy_(torch.eye(8)[:4])
        head.scale.fill_(30.0)
    stranger, known = torch.eye(8)[6:7], torch.eye(8)[2:3]
    torch.testing.assert_close(head(stranger).softmax(dim=1), torch.full((1, 4), 0.25), atol=1e-5, rtol=0)
    assert head(known).softmax(dim=1)[0, 2] > 0.999
    divergence = -head(known).log_softmax(dim=1).mean() - math.log(4)
    assert divergence > 1.0


def test_gate_does_not_care_for_exposure() -> None:
    torch.manual_seed(0)
    network = GateClassifier(1, 5, identity=True).eval()
    image = torch.rand(2, 1, 32, 32) * 2 - 1
    torch.testing.assert_close(network(0.5 * image - 0.3), network(image), atol=5e-2, rtol=0)
    assert network(torch.full((1, 1, 32, 32), 0.4)).isfinite().all()
