# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.data import Dataset
from torch import Tensor

from bundle.files import sha256_file
from bundle.metrics.features import FEATURES, TrunkUnavailable
from bundle.metrics.lpips import lpips_model, mean_pairwise
from bundle.networks.sampling import fixed_latents
from bundle.networks.stylegan2 import Generator
from bundle.networks.weights import UnsealedError, WeightsError, load_weights
from bundle.training import best_generator
from bundle.training.best_generator import BestGenerator
from bundle.training.checkpoint import TrainingCheckpoint
from bundle.training.errors import TrainingError
from bundle.training.spread import SPREADS
from bundle.training.stylegan2_trainer import StyleGAN2Trainer
from scripts.training import train_gan
from tests.conftest import edit_info
from tests.training.conftest import NewTrainer

SETTINGS = {"seed": 0, "resolution": 32}


def best(models_dir: Path, **options: Any) -> BestGenerator:
    reals = torch.rand(12, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    info = {"modality": "xray", "class_names": ["a", "b"], "seed": 0}
    train = Dataset([{"image": image, "label": index % 2} for index, image in enumerate(reals[6:])])
    return BestGenerator(
        reals[:6],
        train,
        models_dir,
        info,
        **{"interval_kimg": 0.012, "n_samples": 8, **options},
    )


@pytest.fixture
def as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """No calibration, and no LPIPS for it."""
    monkeypatch.setattr(best_generator, "lpips_model", lambda squeezenet_file: None)
    monkeypatch.setattr(best_generator, "mean_pairwise", lambda images, model, device: 0.0)
    monkeypatch.setattr(best_generator, "calibrate_spread", lambda *arguments, **options: None)


def pooled(images: Tensor, squeezenet_file: Any = None, **kwargs: Any) -> Tensor:
    """In place of SqueezeNet's features."""
    return F.adaptive_avg_pool2d(images, 2).flatten(1)


@pytest.mark.usefixtures("as_it_is")
def test_best_weights_are_kept(new_trainer: NewTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kids = iter([0.3, 0.1, 0.2])
    monkeypatch.setattr(best_generator, "squeezenet_features", pooled)
    monkeypatch.setattr(best_generator, "kid", lambda *features: next(kids))
    trainer = new_trainer(max_epochs=3)
    handler = best(tmp_path)
    handler.attach(trainer)
    second: dict[str, Tensor] = {}

    @trainer.on(Events.ITERATION_COMPLETED(once=6))
    def remember(engine: Engine) -> None:
        second.update({key: value.clone() for key, value in trainer.average.state_dict().items()})

    trainer.run()
    generator, info = load_weights(tmp_path / "generator.pt")
    for key, value in generator.state_dict().items():
        assert torch.equal(value, second[key].half().float())
    discriminator, discriminator_info = load_weights(tmp_path / "discriminator.pt")
    assert type(discriminator) is type(trainer.discriminator)
    for found in (info, discriminator_info):
        assert found["images_seen"] == 24
        assert found["scores"]["kid_val"] == 0.1
        assert found["scores"]["features"] == FEATURES
        assert found["scores"]["spread"] == [1.0, 1.0]
        assert found["class_names"] == ["a", "b"]
    assert [entry["kimg"] for entry in handler.history] == [0.012, 0.024, 0.036]
    assert trainer.state.metrics["kid_val"] == 0.2


@pytest.mark.usefixtures("as_it_is")
def test_measures_are_those_of_the_metrics(new_trainer: NewTrainer, tmp_path: Path, squeezenet_file: Path) -> None:
    """Through the real feature network, with random weights."""
    trainer = new_trainer(max_epochs=1)
    handler = best(tmp_path, n_samples=4, squeezenet_file=squeezenet_file)
    handler.attach(trainer)
    trainer.run()
    z, label = fixed_latents(4, 4, 2, seed=1)
    images = trainer.average.synthesis(trainer.average.mapping(z, label))
    features = [best_generator.squeezenet_features(x, squeezenet_file) for x in (images, handler.reals)]
    assert handler.best_kid == pytest.approx(best_generator.kid(*features), rel=1e-4, abs=1e-6)


def test_what_is_kept_varies_as_training_images_and_training_does_not_notice(
    new_trainer: NewTrainer, tmp_path: Path, squeezenet_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the real LPIPS, on a trunk with random weights."""
    targets: list[float] = []
    calibrate = best_generator.calibrate_spread

    def remember(generator: Generator, variety: list[float], measure: Any, seed: int) -> None:
        targets.extend(variety)
        calibrate(generator, variety, measure, n_samples=6, seed=seed)

    monkeypatch.setattr(best_generator, "calibrate_spread", remember)
    trainer = new_trainer(max_epochs=1)
    handler = best(tmp_path, n_samples=4, squeezenet_file=squeezenet_file)
    handler.attach(trainer)
    trainer.run()
    model = lpips_model(squeezenet_file)
    train = torch.stack([handler.train[index]["image"] for index in range(6)])
    wanted = [mean_pairwise(train[value::2], model) for value in range(2)]
    assert targets == pytest.approx(wanted)
    generator, info = load_weights(tmp_path / "generator.pt")
    assert isinstance(generator, Generator)
    assert info["scores"]["spread"] == pytest.approx(generator.mapping.spread.tolist(), abs=1e-3)
    assert bool((generator.mapping.spread == SPREADS[1]).all())  # after 12 images, noise varies more
    assert bool((trainer.average.mapping.spread == 1.0).all())


def test_the_spread_is_left_alone_on_demand(new_trainer: NewTrainer, tmp_path: Path, squeezenet_file: Path) -> None:
    trainer = new_trainer(max_epochs=1)
    best(tmp_path, n_samples=4, squeezenet_file=squeezenet_file, calibrate=False).attach(trainer)
    trainer.run()
    assert load_weights(tmp_path / "generator.pt")[1]["scores"]["spread"] == [1.0, 1.0]


@pytest.mark.usefixtures("as_it_is")
def test_best_so_far_survives_a_restart(
    new_trainer: NewTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(best_generator, "squeezenet_features", pooled)
    first, second = best(tmp_path), best(tmp_path)
    monkeypatch.setattr(best_generator, "kid", lambda *features: 0.1)
    first.measure(new_trainer())
    before = (tmp_path / "generator.pt").stat().st_mtime_ns
    second.load_training_state(first.training_state())
    monkeypatch.setattr(best_generator, "kid", lambda *features: 0.2)
    second.measure(new_trainer())
    assert second.best_kid == 0.1
    assert len(second.history) == 2
    assert (tmp_path / "generator.pt").stat().st_mtime_ns == before


def test_without_a_trunk_the_latest_weights_are_kept_with_one_warning(
    new_trainer: NewTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unavailable(*arguments: Any, **options: Any) -> Tensor:
        raise TrunkUnavailable("name it with squeezenet_file")

    monkeypatch.setattr(best_generator, "lpips_model", unavailable)
    trainer = new_trainer()
    best(tmp_path).attach(trainer)
    with caplog.at_level(logging.WARNING, logger=best_generator.__name__):
        trainer.run()
    assert len(caplog.records) == 1
    assert "the latest weights are kept instead of the best: name it with squeezenet_file" in caplog.text
    generator, info = load_weights(tmp_path / "generator.pt")
    assert info["images_seen"] == 24
    assert info["scores"] == {}
    for mean, value in zip(trainer.average.parameters(), generator.parameters(), strict=True):
        assert torch.equal(mean.half().float(), value)


def test_too_few_images_to_measure_are_warned_of(
    new_trainer: NewTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handler = BestGenerator(torch.zeros(1, 1, 32, 32), Dataset([]), tmp_path, {}, interval_kimg=1.0)
    trainer = new_trainer(max_epochs=1)
    handler.attach(trainer)
    with caplog.at_level(logging.WARNING, logger=best_generator.__name__):
        trainer.run()
    assert "val" in caplog.text
    assert (tmp_path / "generator.pt").is_file()


# Weights that were deleted or damaged come back.


def pairs(models_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in models_dir.iterdir()}


def run_to_the_end(new_trainer: NewTrainer, path: Path, models_dir: Path, max_epochs: int = 2) -> StyleGAN2Trainer:
    """Runs a training by the function that the configurations call, from its checkpoint if there is one."""
    trainer = new_trainer(max_epochs=max_epochs)
    handler = best(models_dir)
    handler.attach(trainer)
    train_gan(trainer, TrainingCheckpoint(path, SETTINGS, {"trainer": trainer, "best": handler}, 3))
    return trainer


@pytest.fixture
def falling_then_rising(monkeypatch: pytest.MonkeyPatch) -> None:
    """KID of 0.1 first and more at every later measurement: the best weights are not the last ones."""
    values = iter([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    monkeypatch.setattr(best_generator, "squeezenet_features", pooled)
    monkeypatch.setattr(best_generator, "kid", lambda *features: next(values))


@pytest.mark.usefixtures("as_it_is", "falling_then_rising")
@pytest.mark.parametrize("damage", ["all", "generator.pt", "generator.json", "discriminator.pt", "edited", "truncated"])
@pytest.mark.parametrize("max_epochs", [2, 3])
def test_best_weights_come_back_from_the_checkpoint(
    damage: str, max_epochs: int, new_trainer: NewTrainer, path: Path, tmp_path: Path
) -> None:
    models_dir = tmp_path / "models"
    run_to_the_end(new_trainer, path, models_dir)
    before = pairs(models_dir)
    if damage == "edited":
        text = (models_dir / "generator.json").read_text()
        (models_dir / "generator.json").write_text(text.replace('"a"', '"c"'))
    elif damage == "truncated":
        (models_dir / "generator.pt").write_bytes(before["generator.pt"][:-10])
    else:
        for name in before:
            if damage in ("all", name):
                (models_dir / name).unlink()
    run_to_the_end(new_trainer, path, models_dir, max_epochs)
    assert pairs(models_dir) == before


@pytest.mark.usefixtures("as_it_is", "falling_then_rising")
@pytest.mark.parametrize("at", ["the start", "the end"])
def test_weights_of_another_run_are_neither_taken_nor_overwritten(
    at: str, new_trainer: NewTrainer, path: Path, tmp_path: Path
) -> None:
    run_to_the_end(new_trainer, tmp_path / "other" / "gan.pt", tmp_path / "other" / "models", 1)
    models_dir = tmp_path / "models"
    if at == "the end":
        run_to_the_end(new_trainer, path, models_dir)
    shutil.copytree(tmp_path / "other" / "models", models_dir, dirs_exist_ok=True)
    for name in ("generator", "discriminator"):
        edit_info(models_dir / f"{name}.pt", seed=1)
        weights = torch.load(models_dir / f"{name}.pt", weights_only=True)
        first = next(iter(weights))
        torch.save({**weights, first: weights[first] + 1}, models_dir / f"{name}.pt")
        edit_info(models_dir / f"{name}.pt", sha256=sha256_file(models_dir / f"{name}.pt"))
    before = pairs(models_dir)
    with pytest.raises(WeightsError, match=r"that this run has not written\. Name another output_dir"):
        run_to_the_end(new_trainer, path, models_dir)
    assert pairs(models_dir) == before


@pytest.mark.usefixtures("as_it_is", "falling_then_rising")
def test_a_run_killed_between_a_measurement_and_a_checkpoint_goes_on(
    new_trainer: NewTrainer, path: Path, tmp_path: Path
) -> None:
    models_dir = tmp_path / "models"
    run_to_the_end(new_trainer, path, models_dir)
    before = pairs(models_dir)
    path.unlink()
    run_to_the_end(new_trainer, path, models_dir)
    assert pairs(models_dir).keys() == before.keys()


@pytest.mark.usefixtures("as_it_is", "falling_then_rising")
def test_weights_that_were_never_written_are_not_missed(
    new_trainer: NewTrainer, path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = new_trainer()
    handler = best(tmp_path / "models")
    TrainingCheckpoint(path, SETTINGS, {"trainer": trainer}, 3).attach(trainer)
    trainer.run()
    assert handler.restore(trainer) is False
    assert not caplog.records


def without_kept_weights(path: Path) -> None:
    """Makes a checkpoint what an earlier version would have written."""
    content = torch.load(path, weights_only=True)
    del content["best"]["kept"]
    torch.save(content, path)


@pytest.mark.usefixtures("as_it_is", "falling_then_rising")
def test_checkpoint_of_an_earlier_version_is_gone_on_with(
    new_trainer: NewTrainer, path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models_dir = tmp_path / "models"
    run_to_the_end(new_trainer, path, models_dir)
    before = pairs(models_dir)
    without_kept_weights(path)
    run_to_the_end(new_trainer, path, models_dir, 3)
    assert pairs(models_dir) == before
    assert not caplog.records


@pytest.mark.usefixtures("as_it_is", "falling_then_rising")
@pytest.mark.parametrize("max_epochs", [2, 3])
def test_without_kept_weights_the_next_ones_take_their_place_with_a_warning(
    max_epochs: int, new_trainer: NewTrainer, path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models_dir = tmp_path / "models"
    run_to_the_end(new_trainer, path, models_dir)
    (models_dir / "generator.pt").unlink()
    without_kept_weights(path)
    run_to_the_end(new_trainer, path, models_dir, max_epochs)
    assert "the checkpoint of an earlier version does not have them" in caplog.text
    assert load_weights(models_dir / "generator.pt")[1]["images_seen"] == (24 if max_epochs == 2 else 24 + 12)
    before = pairs(models_dir)
    (models_dir / "generator.pt").unlink()
    run_to_the_end(new_trainer, path, models_dir, max_epochs)
    assert pairs(models_dir) == before


@pytest.mark.usefixtures("as_it_is", "falling_then_rising")
def test_weights_of_an_earlier_version_are_left_to_be_sealed(
    new_trainer: NewTrainer, path: Path, tmp_path: Path
) -> None:
    models_dir = tmp_path / "models"
    run_to_the_end(new_trainer, path, models_dir)
    without_kept_weights(path)
    for name in ("generator.json", "discriminator.json"):
        info = json.loads((models_dir / name).read_text())
        del info["json_sha256"]
        (models_dir / name).write_text(json.dumps(info))
    before = pairs(models_dir)
    with pytest.raises(UnsealedError, match=r"scripts\.seal"):
        run_to_the_end(new_trainer, path, models_dir)
    run_to_the_end(new_trainer, path, models_dir, 3)
    assert pairs(models_dir) == before


def test_training_of_no_image_is_refused(new_trainer: NewTrainer, path: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="--total_kimg comes to no image"):
        run_to_the_end(new_trainer, path, tmp_path / "models", max_epochs=0)
    assert not path.exists()
