# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bundle.networks.classifiers import Guide
from bundle.networks.latent_guides import LatentGuide
from bundle.networks.model_set import ModelSet, load_models
from bundle.networks.sampling import sample_z
from bundle.networks.weights import load_weights
from bundle.training.errors import TrainingError
from bundle.training.latent_guide_trainer import LabelledLatents, LatentGuideTrainer, ask_guides, draw_latents
from tests.training.conftest import KillAt, Killed

TEACHERS = {"latent_identity": "identity_guide", "latent_class": "class_guide"}


@pytest.fixture(scope="module")
def models(toy_models: Path) -> ModelSet:
    return load_models(toy_models, names=("generator", *TEACHERS.values()))


@pytest.fixture(scope="module")
def latents(models: ModelSet) -> Tensor:
    return draw_latents(models.generator, range(256), seed=3)[0]


@pytest.fixture(scope="module")
def features(models: ModelSet, latents: Tensor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    teachers = {name: models.networks[teacher] for name, teacher in TEACHERS.items()}
    return ask_guides(models.generator, teachers, latents, tmp_path_factory.mktemp("asked"), "asking")


def test_latents_are_samples_and_places_on_lines(models: ModelSet) -> None:
    w, label = draw_latents(models.generator, range(64), seed=3)
    assert w.shape == (64, 8)
    assert label.bincount().tolist() == [32, 32]
    later, later_label = draw_latents(models.generator, range(40, 50), seed=3)
    torch.testing.assert_close(later, w[40:50])
    assert torch.equal(later_label, label[40:50])

    first, last = (models.generator.mapping(sample_z(range(end, 128, 2), 8, 3), label) for end in range(2))
    place = ((w - first) * (last - first)).sum(1) / (last - first).square().sum(1)
    torch.testing.assert_close(torch.lerp(first, last, place.unsqueeze(1)), w, rtol=1e-4, atol=1e-4)
    is_sample = torch.arange(64) // 2 % 2 == 0
    torch.testing.assert_close(place[is_sample], torch.zeros(32), atol=1e-5, rtol=0)
    on_lines = place[~is_sample]
    assert 0.0 < float(on_lines.min()) < 0.1
    assert 0.9 < float(on_lines.max()) < 1.0
    for one_class in (on_lines[label[~is_sample] == value] for value in range(2)):
        assert 0.4 < float(one_class.mean()) < 0.6


def test_guides_see_the_generators_images(models: ModelSet, latents: Tensor, features: dict[str, Tensor]) -> None:
    images = models.generator.synthesis(latents[:20])
    for name, teacher in TEACHERS.items():
        network = models.networks[teacher]
        assert isinstance(network, Guide)
        assert features[name].shape == (256, network.head.weight.shape[1])
        found, expected = features[name][:20].float(), network.features(images)
        assert float(torch.nn.functional.cosine_similarity(found, expected).min()) > 0.99  # in bf16


def test_what_was_asked_is_not_asked_again(models: ModelSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bundle.training.latent_guide_trainer.SHARD", 20)
    teachers = {name: models.networks[teacher] for name, teacher in TEACHERS.items()}
    w, _ = draw_latents(models.generator, range(50), seed=4)
    whole = ask_guides(models.generator, teachers, w, tmp_path, "asking")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.pt", "00001.pt", "00002.pt"]
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    (tmp_path / "00001.pt").unlink()
    again = ask_guides(models.generator, teachers, w, tmp_path, "asking")
    assert [path.name for path in sorted(tmp_path.iterdir()) if path.stat().st_mtime > 0] == ["00001.pt"]
    for name in TEACHERS:
        assert torch.equal(again[name], whole[name])
    with pytest.raises(TrainingError, match=r"said of other latents\. Remove"):
        ask_guides(models.generator, teachers, w + 1, tmp_path, "asking")


def make_trainer(
    name: str, models: ModelSet, latents: Tensor, features: dict[str, Tensor], output_dir: Path, **options: Any
) -> LatentGuideTrainer:
    teacher = models.networks[TEACHERS[name]]
    assert isinstance(teacher, Guide)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        size = {"features": features[name].shape[1], "num_classes": teacher.num_classes}
        network = LatentGuide(8, **size, identity=name == "latent_identity", width=64, depth=2)
    network.head.load_state_dict(teacher.head.state_dict())
    network.standardise(latents)
    options = {"max_epochs": 2, "batch_size": 64, "checkpoint_epochs": 1, "learning_rate": 0.01, **options}
    return LatentGuideTrainer(
        name,
        models.infos,
        LabelledLatents(latents, features[name]),
        network,
        lambda student: {"scores": {"n": 1}},
        output_dir,
        "cpu",
        **options,
    )


@pytest.mark.parametrize("name", TEACHERS)
def test_student_learns_what_its_teacher_says(
    name: str, models: ModelSet, latents: Tensor, features: dict[str, Tensor], tmp_path: Path
) -> None:
    make_trainer(name, models, latents, features, tmp_path, max_epochs=100).run()
    student, info = load_weights(tmp_path / "models" / f"{name}.pt")
    assert isinstance(student, LatentGuide)
    teacher = models.networks[TEACHERS[name]]
    wanted = teacher.head(features[name].float())  # type: ignore[operator]
    # What is the same for all classes is not asked for.
    wanted, told = (logits - logits.mean(dim=1, keepdim=True) for logits in (wanted, student(latents)))
    spread = (wanted - wanted.mean(dim=0)).square().mean()
    assert float((told - wanted).square().mean()) < 0.3 * float(spread)
    for key, value in teacher.head.state_dict().items():  # type: ignore[union-attr]
        torch.testing.assert_close(student.head.state_dict()[key], value, rtol=1e-3, atol=1e-3)
    assert info["resolution"] == 32
    assert info["class_names"] == ["normal", "tuberculosis"]
    assert info["training"]["generator_sha256"] == models.infos["generator"]["sha256"]
    assert info["training"]["teacher_sha256"] == models.infos[TEACHERS[name]]["sha256"]


def test_a_latent_out_of_line_does_not_undo_what_was_learnt(
    models: ModelSet, latents: Tensor, features: dict[str, Tensor], tmp_path: Path
) -> None:
    name = "latent_class"
    spoilt = {name: features[name].clone()}
    spoilt[name][0] *= 1000
    trainer = make_trainer(name, models, latents, spoilt, tmp_path, max_epochs=100)
    trainer.run()
    with torch.no_grad():
        said = (features[name].float(), trainer.student.features(latents))
        wanted, told = (trainer.student.head(value[1:]) for value in said)
    wanted, told = (logits - logits.mean(dim=1, keepdim=True) for logits in (wanted, told))
    assert float((told - wanted).square().mean()) < 0.5 * float((wanted - wanted.mean(dim=0)).square().mean())


def test_resumed_run_gives_the_same_bits(
    models: ModelSet, latents: Tensor, features: dict[str, Tensor], tmp_path: Path
) -> None:
    name = "latent_identity"
    make_trainer(name, models, latents, features, tmp_path / "whole").run()
    with pytest.raises(Killed):
        make_trainer(name, models, latents, features, tmp_path / "killed", train_handlers=[KillAt(6)]).run()
    resumed = make_trainer(name, models, latents, features, tmp_path / "killed")
    assert resumed.state.iteration == 4
    resumed.run()
    first, again = (load_weights(tmp_path / run / "models" / f"{name}.pt")[0] for run in ("whole", "killed"))
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_what_is_the_same_for_all_classes_is_not_learnt(
    models: ModelSet, latents: Tensor, features: dict[str, Tensor], tmp_path: Path
) -> None:
    trainer = make_trainer("latent_class", models, latents, features, tmp_path)
    with torch.no_grad():
        trainer.student.head.weight.copy_(torch.ones_like(trainer.student.head.weight))
    student, teacher = torch.randn(2, 5, features["latent_class"].shape[1])
    assert float(trainer._loss(student, teacher)) == pytest.approx(0.0, abs=1e-9)


def test_network_in_training_keeps_its_last_layer_frozen(
    models: ModelSet, latents: Tensor, features: dict[str, Tensor], tmp_path: Path
) -> None:
    trainer = make_trainer("latent_identity", models, latents, features, tmp_path)
    assert isinstance(trainer.network, nn.Module)
    frozen = {name for name, value in trainer.network.named_parameters() if not value.requires_grad}
    assert frozen == {"head.weight", "head.scale", "head.nobody"}
