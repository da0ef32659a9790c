# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from bundle.data import ImageData, open_dataset
from bundle.metrics.lpips import lpips_model
from bundle.networks.model_set import ModelSet, load_models, read_infos
from bundle.networks.weights import WeightsError, load_weights
from bundle.training.checkpoint import CheckpointError
from bundle.training.encoder_trainer import EncoderBatch, EncoderLoss, EncoderTarget, EncoderTrainer, offset_penalty
from bundle.training.errors import TrainingError
from tests.conftest import cause, edit_info, train_on_models
from tests.training.conftest import KillAt, Killed


@pytest.fixture
def models_dir(encoder_models: Path) -> Path:
    """The toy networks, without an encoder."""
    for suffix in (".pt", ".json"):
        encoder_models.joinpath(f"encoder{suffix}").unlink()
    return encoder_models


@pytest.fixture
def models(models_dir: Path) -> ModelSet:
    return load_models(models_dir, names=("generator",))


@pytest.fixture
def data(tiny_dataset: Path, tmp_path: Path) -> ImageData:
    return open_dataset(tiny_dataset, tmp_path, resolution=32)


@pytest.fixture
def new_trainer(models: ModelSet, data: ImageData, squeezenet_file: Path) -> Any:
    dataset = data.dataset(("train", "extra"))

    def build(output_dir: Path, **options: Any) -> EncoderTrainer:
        options = {"max_epochs": 2, "batch_size": 8, "width": 8, "checkpoint_epochs": 1, **options}
        given = options.pop("models", models)
        return EncoderTrainer(given, data, dataset, output_dir, "cpu", squeezenet_file=squeezenet_file, **options)

    return build


def test_batch_is_real_images_then_samples_of_known_latents(models: ModelSet) -> None:
    real = torch.rand(3, 1, 32, 32)
    prepare = EncoderBatch(models.generator, 5)
    torch.manual_seed(0)
    images, target = prepare({"image": real}, torch.device("cpu"))
    assert torch.equal(images[:3], real)
    assert target.image is images
    assert target.w.shape == (5, 8)
    torch.testing.assert_close(images[3:], models.generator.synthesis(target.w), rtol=0.05, atol=0.05)  # bf16
    torch.manual_seed(0)
    assert torch.equal(prepare({"image": real}, torch.device("cpu"))[1].w, target.w)
    assert not torch.equal(prepare({"image": real}, torch.device("cpu"))[1].w, target.w)


def test_loss_is_smallest_at_the_samples_own_latents(models: ModelSet, squeezenet_file: Path) -> None:
    w = torch.randn(2, 8)
    loss = EncoderLoss(models.generator, lpips_model(squeezenet_file), torch.ones(8), lambda_delta=0.1)
    target = EncoderTarget(models.generator.synthesis(w), w)
    each = w.unsqueeze(1).repeat(1, models.generator.synthesis.num_ws, 1)
    assert float(loss(each, target)) < 1e-3
    assert float(loss(each + 1.0, target)) > 1.0
    real = EncoderTarget(target.image, w[1:])  # of the first image the latent is not known
    moved = each.clone()
    moved[0] += 1.0
    assert float(loss.latent_error(moved, real)) == 0.0
    each.requires_grad_(True)
    loss(each, target).backward()
    assert each.grad is not None
    assert bool(each.grad.isfinite().all())


def test_offsets_are_measured_in_deviations_of_w() -> None:
    deviation = torch.tensor([1.0, 2.0, 4.0, 8.0])
    w = torch.randn(3, 1, 4).repeat(1, 5, 1)
    assert float(offset_penalty(w, deviation)) < 1e-3
    w[:, 2] += 3.0 * deviation
    assert float(offset_penalty(w, deviation)) == pytest.approx(3.0 / 4, rel=1e-3)


def test_encoder_learns_and_is_measured_on_both_sets(new_trainer: Any, models: ModelSet, tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, max_epochs=6, learning_rate=3e-3)
    untrained = held_out_scores(trainer)
    trainer.run()
    _, info = load_weights(tmp_path / "models" / "encoder.pt")
    scores = info["scores"]
    assert scores["held_out"]["lpips"] < untrained["lpips"]
    assert scores["train"].keys() == scores["held_out"].keys()
    assert scores["train"]["n"] == len(trainer.data.records("train"))
    assert scores["train"]["n"] + scores["held_out"]["n"] == 40
    assert all(value >= 0 for part in scores.values() for value in part.values())
    assert 0 < scores["train"]["spread"] < 2
    assert info["training"]["generator_sha256"] == models.infos["generator"]["sha256"]
    assert info["training"]["real_share"] == 0.5


def held_out_scores(trainer: EncoderTrainer) -> dict[str, float]:
    trainer.encoder.eval()
    scores: dict[str, float] = trainer.measure()["scores"]["held_out"]
    return scores


def test_resumed_run_gives_the_same_bits(new_trainer: Any, tmp_path: Path) -> None:
    new_trainer(tmp_path / "whole").run()
    with pytest.raises(Killed):
        new_trainer(tmp_path / "killed", train_handlers=[KillAt(10)]).run()
    resumed = new_trainer(tmp_path / "killed")
    assert resumed.state.iteration == len(resumed.sampler)
    resumed.run()
    first, again = (load_weights(tmp_path / run / "models" / "encoder.pt")[0] for run in ("whole", "killed"))
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_images_that_were_treated_otherwise_are_refused(new_trainer: Any, models: ModelSet, tmp_path: Path) -> None:
    other = ModelSet({"generator": {**models.infos["generator"], "preprocessing": "retina"}}, models.networks)
    with pytest.raises(TrainingError, match=r"whose preprocessing is retina; that of these is .*Name its training"):
        new_trainer(tmp_path, models=other)


@pytest.mark.parametrize(("share", "real"), [(0.5, 4), (0.01, 1), (0.99, 7)])
def test_every_batch_has_images_of_both_kinds(new_trainer: Any, tmp_path: Path, share: float, real: int) -> None:
    trainer = new_trainer(tmp_path, real_share=share)
    assert trainer.batch_size == real
    assert trainer.prepare_batch.samples == 8 - real


def test_too_small_a_batch_and_another_generator_are_refused(
    new_trainer: Any, models: ModelSet, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="The nearest is 2"):
        new_trainer(tmp_path, batch_size=1)
    with pytest.raises(Killed):
        new_trainer(tmp_path, max_epochs=1, train_handlers=[KillAt(2)]).run()
    new_trainer(tmp_path, max_epochs=1).run()
    other = ModelSet({"generator": {**models.infos["generator"], "sha256": "1" * 64}}, models.networks)
    with pytest.raises((TrainingError, CheckpointError), match="was trained with generator_sha256"):
        new_trainer(tmp_path, max_epochs=1, models=other)


def run(models_dir: Path, output_dir: Path, **options: Any) -> None:
    train_on_models("train_encoder", models_dir, output_dir, **{"max_epochs": 1, "batch_size": 8, **options})


def test_command_writes_an_encoder_that_belongs_to_the_set(
    models_dir: Path, tiny_dataset: Path, tmp_path: Path, squeezenet_file: Path
) -> None:
    run(models_dir, tmp_path, dataset_dir=str(tiny_dataset), squeezenet_file=str(squeezenet_file))
    infos = read_infos(models_dir, ("generator", "gate_class", "encoder")).infos
    assert infos["encoder"]["network"] == "Encoder"
    assert str(tmp_path) not in json.dumps(infos["encoder"])
    for name, other in (("gate_class", "encoder"), ("encoder", "gate_class")):
        folder = Path(shutil.copytree(models_dir, tmp_path / f"swapped_{name}"))
        for suffix in (".pt", ".json"):
            shutil.copyfile(models_dir / f"{other}{suffix}", folder / f"{name}{suffix}")
        with pytest.raises(WeightsError, match=f"cannot be the {name}|training.generator_sha256 is missing"):
            read_infos(folder, ("generator", name))
    edit_info(models_dir / "encoder.pt", training={"generator_sha256": "1" * 64})
    with pytest.raises(WeightsError, match=r"encoder was trained for another generator\. Train it anew"):
        read_infos(models_dir, ("generator", "encoder"))


def test_command_refuses_images_of_another_training(
    models_dir: Path, elsewhere: Path, tmp_path: Path, squeezenet_file: Path
) -> None:
    with pytest.raises(RuntimeError) as raised:
        run(models_dir, tmp_path / "new", dataset_dir=str(elsewhere), squeezenet_file=str(squeezenet_file))
    assert "not what the models" in str(cause(raised.value)) or "splits.json" in str(cause(raised.value))
