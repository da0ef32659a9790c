# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bundle.networks.classifiers import GateClassifier, Guide
from bundle.networks.imagenet_classifier import ImageNetClassifier
from bundle.networks.latent_guides import LATENT_GUIDES, LatentGuide, LatentRealism, new_latent_guide
from bundle.networks.realism import RealismJudge
from bundle.networks.weights import load_weights, save_weights


@pytest.mark.parametrize(
    ("name", "teacher"),
    [
        ("latent_identity", Guide(1, 7, identity=True, width=0.125)),
        ("latent_class", Guide(1, 7, width=0.125)),
        ("latent_class", ImageNetClassifier(3, 7, "resnet18")),
    ],
)
def test_student_has_its_teachers_last_layer(name: str, teacher: Guide | ImageNetClassifier) -> None:
    torch.nn.init.normal_(teacher.head.weight)
    student = new_latent_guide(name, teacher, w_dim=5)
    for key, value in teacher.head.state_dict().items():
        assert torch.equal(student.head.state_dict()[key], value), key
    features = torch.randn(3, student.arguments["features"])
    torch.testing.assert_close(student.head(features), teacher.head(features))
    assert student(torch.randn(3, 5)).shape == (3, 7)


def test_student_of_a_judge_of_realism_predicts_log_distances() -> None:
    student = new_latent_guide("latent_realism", RealismJudge(3, components=2), w_dim=5)
    assert isinstance(student, LatentRealism)
    found = student(torch.randn(4, 5))
    assert found.shape == (4, 3)
    assert float(found.detach().min()) >= 0.0


def test_only_a_guide_has_students() -> None:
    with pytest.raises(TypeError, match="from a guide, not from GateClassifier"):
        new_latent_guide("latent_class", GateClassifier(1, 2, growth=4, layers=(1, 1)), w_dim=5)


def test_latents_are_brought_to_one_scale() -> None:
    student = LatentGuide(3, 4, 2, width=8, depth=1)
    w = torch.randn(200, 3) * torch.tensor([0.1, 10.0, 0.0]) + torch.tensor([5.0, -3.0, 1.0])
    student.standardise(w)
    seen: list[torch.Tensor] = []
    student.trunk.layers[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    student(w)
    torch.testing.assert_close(seen[0].mean(dim=0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen[0].std(dim=0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-4, rtol=0)


def test_every_size_of_network_comes_back_from_its_file(tmp_path: Path) -> None:
    student = LatentGuide(3, 4, 5, identity=True, width=6, depth=2)
    student.standardise(torch.randn(10, 3))
    save_weights(student, tmp_path / "student.pt", {})
    again, _ = load_weights(tmp_path / "student.pt")
    w = torch.randn(2, 3)
    torch.testing.assert_close(again(w), student(w), rtol=1e-2, atol=1e-2)  # kept in fp16


def test_names_say_whose_students_they_are() -> None:
    assert {name: teacher for name, (teacher, _) in LATENT_GUIDES.items()} == {
        "latent_identity": "identity_guide",
        "latent_class": "class_guide",
        "latent_realism": "realism_guide",
    }
