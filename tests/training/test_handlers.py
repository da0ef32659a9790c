# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.data import Dataset
from PIL import Image
from torch import Tensor

from bundle import files
from bundle.files import sha256_file
from bundle.lock import InUseError
from bundle.metrics.features import FEATURES, TrunkUnavailable
from bundle.metrics.lpips import lpips_model, mean_pairwise
from bundle.networks.stylegan2 import Generator
from bundle.networks.weights import UnsealedError, WeightsError, load_weights
from bundle.training import handlers
from bundle.training.handlers import (
    BestGenerator,
    CheckpointError,
    GanProgress,
    SampleGrid,
    TrainingCheckpoint,
    every_kimg,
    fixed_latents,
)
from bundle.training.memory import TooLittleMemory
from bundle.training.network_trainer import TrainingError
from bundle.training.spread import SPREADS
from bundle.training.stylegan2_trainer import StyleGAN2Trainer
from scripts.training import train_gan
from tests.conftest import edit_info
from tests.training.conftest import NewTrainer

SETTINGS = {"seed": 0, "resolution": 32}


class Part:
    """A state to save beside the trainer's."""

    def __init__(self) -> None:
        self.value = 0

    def training_state(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_training_state(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


def checkpoint(trainer: StyleGAN2Trainer, path: Path, interval: int = 3, **settings: Any) -> TrainingCheckpoint:
    return TrainingCheckpoint(path, {**SETTINGS, **settings}, {"trainer": trainer}, interval)


def same_weights(left: StyleGAN2Trainer, right: StyleGAN2Trainer) -> bool:
    pairs = zip(left.average.parameters(), right.average.parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "gan.pt"


def test_checkpoint_is_written_at_intervals_and_at_the_end(new_trainer: NewTrainer, path: Path) -> None:
    trainer, saved = new_trainer(), []
    handler = checkpoint(trainer, path, interval=4)
    handler.attach(trainer)

    @trainer.on(Events.ITERATION_COMPLETED)
    def look(engine: Engine) -> None:
        saved.append(torch.load(path, weights_only=True)["trainer"]["iteration"] if path.exists() else 0)

    trainer.run()
    assert saved == [0, 0, 0, 4, 4, 4]
    assert torch.load(path, weights_only=True)["trainer"]["iteration"] == 6
    assert [file.name for file in path.parent.iterdir()] == ["gan.pt"]


def test_what_a_killed_run_left_behind_is_swept(new_trainer: NewTrainer, path: Path) -> None:
    left = path.parent / f".{path.stem}-{files._MACHINE}-abcdefgh.tmp.pt"
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"half of a checkpoint")
    trainer = new_trainer()
    TrainingCheckpoint(path, {}, {"trainer": trainer}, interval=1).attach(trainer)
    assert not left.exists()


def test_interrupted_run_is_gone_on_with(
    new_trainer: NewTrainer, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = new_trainer()
    whole.run()
    first = new_trainer()
    checkpoint(first, path).attach(first)
    first.add_event_handler(Events.ITERATION_STARTED(once=2), lambda: signal.raise_signal(signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stopped:
        first.run()
    assert stopped.value.code == 130
    assert f"Stopped at iteration 2, saved {path}; the same command goes on." in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
    second = new_trainer()
    checkpoint(second, path).attach(second)
    assert second.state.iteration == 2
    second.run()
    assert same_weights(second, whole)


def test_second_interrupt_acts_at_once(new_trainer: NewTrainer, path: Path) -> None:
    # A process started in the background ignores interrupts from the start.
    foreground = signal.signal(signal.SIGINT, signal.default_int_handler)
    trainer = new_trainer()
    checkpoint(trainer, path).attach(trainer)

    @trainer.on(Events.ITERATION_STARTED(once=2))
    def twice(engine: Engine) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert not path.exists()
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, foreground)


def test_signals_are_given_back_when_the_run_ends(new_trainer: NewTrainer, path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    trainer = new_trainer()
    checkpoint(trainer, path).attach(trainer)
    trainer.run()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_outside_the_main_thread_signals_are_left_alone(new_trainer: NewTrainer, path: Path) -> None:
    trainer = new_trainer(max_epochs=1, epoch_length=1)
    checkpoint(trainer, path).attach(trainer)
    thread = threading.Thread(target=trainer.run)
    thread.start()
    thread.join()
    assert path.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed = 0, now it is 1"),
        ({"resolution": 64}, "resolution = 32, now it is 64"),
        ({"another": "x"}, "another = None, now it is 'x'"),
    ],
)
def test_changed_settings_are_refused_by_name(
    new_trainer: NewTrainer, path: Path, change: dict[str, Any], words: str
) -> None:
    trainer = new_trainer(max_epochs=1, epoch_length=1)
    checkpoint(trainer, path).attach(trainer)
    trainer.run()
    other = new_trainer()
    with pytest.raises(CheckpointError, match=rf"gan\.pt was trained with {words}\. Give the old value .* output_dir"):
        checkpoint(other, path, **change).attach(other)
    assert other.state.iteration == 0


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_damaged_checkpoint_is_named(new_trainer: NewTrainer, path: Path, content: bytes | None) -> None:
    trainer = new_trainer(max_epochs=1, epoch_length=1)
    checkpoint(trainer, path).save()
    path.write_bytes(path.read_bytes()[:-500] if content is None else content)
    with pytest.raises(CheckpointError, match=r"gan\.pt is not a readable checkpoint\. Move it away"):
        checkpoint(trainer, path).attach(trainer)


def test_all_changed_settings_are_named_with_both_values(new_trainer: NewTrainer, path: Path) -> None:
    trainer = new_trainer(max_epochs=1, epoch_length=1)
    checkpoint(trainer, path).save()
    words = r"resolution = 32, now it is 64; seed = 0, now it is 1\. Give the old values to go on"
    with pytest.raises(CheckpointError, match=words):
        checkpoint(trainer, path, seed=1, resolution=64).attach(trainer)


@pytest.mark.parametrize(
    "content",
    [
        [1],
        {},
        {"settings": 3},
        {"settings": SETTINGS},
        {"settings": SETTINGS, "trainer": {}},
        {"settings": SETTINGS, "trainer": [1]},
        {"settings": SETTINGS, "trainer": {"generator": {"a": torch.ones(1)}}},
    ],
)
def test_checkpoint_of_something_else_is_named(new_trainer: NewTrainer, path: Path, content: Any) -> None:
    path.parent.mkdir()
    torch.save(content, path)
    trainer = new_trainer(max_epochs=1, epoch_length=1)
    with pytest.raises(CheckpointError, match=r"gan\.pt .* Move it away to train from the start") as caught:
        checkpoint(trainer, path).attach(trainer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_not_a_file_is_no_checkpoint(new_trainer: NewTrainer, path: Path, make: Any) -> None:
    path.parent.mkdir()
    make(path)
    trainer = new_trainer(max_epochs=1, epoch_length=1)
    with pytest.raises(CheckpointError, match=r"gan\.pt is not a readable checkpoint"):
        checkpoint(trainer, path).attach(trainer)


def test_every_part_is_saved_and_loaded(path: Path) -> None:
    one, two = Part(), Part()
    one.value, two.value = 3, 4
    TrainingCheckpoint(path, {}, {"one": one, "two": two}, 1).save()
    back = {"one": Part(), "two": Part()}
    TrainingCheckpoint(path, {}, back, 1).attach(Engine(lambda engine, batch: None))
    assert (back["one"].value, back["two"].value) == (3, 4)


def test_every_kimg_and_at_the_end(new_trainer: NewTrainer) -> None:
    trainer, seen = new_trainer(), []  # 6 iterations of 4 images
    every_kimg(trainer, 0.010, lambda engine: seen.append(engine.images_seen))
    trainer.run()
    assert seen == [12, 20, 24]


def test_fixed_latents() -> None:
    z, label = fixed_latents(5, 3, 2, seed=1)
    assert z.shape == (5, 3)
    assert label.tolist() == [0, 1, 0, 1, 0]
    assert torch.equal(fixed_latents(5, 3, 2, seed=1)[0], z)
    assert not torch.equal(fixed_latents(5, 3, 2, seed=2)[0], z)


def test_sample_grids_show_the_averaged_generator(new_trainer: NewTrainer, tmp_path: Path) -> None:
    trainer = new_trainer()
    grid = SampleGrid(tmp_path / "samples", 1000.0, ["a", "b"], n=3)
    grid.attach(trainer)
    trainer.run()
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["kimg_000000.png"]
    with Image.open(tmp_path / "samples" / "kimg_000000.png") as picture:
        assert picture.mode == "L"
        assert picture.width >= 3 * 32
        assert picture.height >= 2 * 32
        before = picture.tobytes()
    for parameter in trainer.generator.parameters():
        torch.nn.init.zeros_(parameter)
    grid.draw(trainer)
    with Image.open(tmp_path / "samples" / "kimg_000000.png") as picture:
        assert picture.tobytes() == before
    assert trainer.state.last_sample_grid == str(tmp_path / "samples" / "kimg_000000.png")


def test_progress_counts_images_of_the_whole_run(
    new_trainer: NewTrainer, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = new_trainer(max_epochs=1)
    checkpoint(first, path).attach(first)
    first.run()
    second = new_trainer()
    GanProgress().attach(second)
    checkpoint(second, path).attach(second)
    second.run()
    shown = capsys.readouterr().err
    assert "training the GAN:  50%" in shown
    assert "12.0/24.0" in shown
    assert "image/s" in shown


# KID, the best weights, and what happens without the feature network.


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
    monkeypatch.setattr(handlers, "lpips_model", lambda squeezenet_file: None)
    monkeypatch.setattr(handlers, "mean_pairwise", lambda images, model, device: 0.0)
    monkeypatch.setattr(handlers, "calibrate_spread", lambda *arguments, **options: None)


def pooled(images: Tensor, squeezenet_file: Any = None, **kwargs: Any) -> Tensor:
    """In place of SqueezeNet's features."""
    return F.adaptive_avg_pool2d(images, 2).flatten(1)


@pytest.mark.usefixtures("as_it_is")
def test_best_weights_are_kept(new_trainer: NewTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kids = iter([0.3, 0.1, 0.2])
    monkeypatch.setattr(handlers, "squeezenet_features", pooled)
    monkeypatch.setattr(handlers, "kid", lambda *features: next(kids))
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
    features = [handlers.squeezenet_features(x, squeezenet_file) for x in (images, handler.reals)]
    assert handler.best_kid == pytest.approx(handlers.kid(*features), rel=1e-4, abs=1e-6)


def test_what_is_kept_varies_as_training_images_and_training_does_not_notice(
    new_trainer: NewTrainer, tmp_path: Path, squeezenet_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the real LPIPS, on a trunk with random weights."""
    targets: list[float] = []
    calibrate = handlers.calibrate_spread

    def remember(generator: Generator, variety: list[float], measure: Any, seed: int) -> None:
        targets.extend(variety)
        calibrate(generator, variety, measure, n_samples=6, seed=seed)

    monkeypatch.setattr(handlers, "calibrate_spread", remember)
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
    monkeypatch.setattr(handlers, "squeezenet_features", pooled)
    first, second = best(tmp_path), best(tmp_path)
    monkeypatch.setattr(handlers, "kid", lambda *features: 0.1)
    first.measure(new_trainer())
    before = (tmp_path / "generator.pt").stat().st_mtime_ns
    second.load_training_state(first.training_state())
    monkeypatch.setattr(handlers, "kid", lambda *features: 0.2)
    second.measure(new_trainer())
    assert second.best_kid == 0.1
    assert len(second.history) == 2
    assert (tmp_path / "generator.pt").stat().st_mtime_ns == before


def test_without_a_trunk_the_latest_weights_are_kept_with_one_warning(
    new_trainer: NewTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unavailable(*arguments: Any, **options: Any) -> Tensor:
        raise TrunkUnavailable("name it with squeezenet_file")

    monkeypatch.setattr(handlers, "lpips_model", unavailable)
    trainer = new_trainer()
    best(tmp_path).attach(trainer)
    with caplog.at_level(logging.WARNING, logger=handlers.__name__):
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
    with caplog.at_level(logging.WARNING, logger=handlers.__name__):
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
    monkeypatch.setattr(handlers, "squeezenet_features", pooled)
    monkeypatch.setattr(handlers, "kid", lambda *features: next(values))


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


def test_damaged_numbers_in_a_checkpoint_are_noticed(new_trainer: NewTrainer, path: Path) -> None:
    trainer = new_trainer()
    checkpoint(trainer, path).attach(trainer)
    trainer.run()
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        numbers = archive.read(largest)
    assert content.count(numbers) == 1
    path.write_bytes(content.replace(numbers, bytes(len(numbers))))
    with pytest.raises(CheckpointError, match="is not a readable checkpoint"):
        checkpoint(new_trainer(), path).attach(new_trainer())


def test_two_runs_do_not_train_in_one_folder(new_trainer: NewTrainer, path: Path) -> None:
    trainer = new_trainer()
    handler = checkpoint(trainer, path)
    with handler.lock(), pytest.raises(InUseError, match=r"is in use: another run works there \(gan\.lock\)"):
        train_gan(trainer, handler)
    train_gan(trainer, handler)


@pytest.mark.usefixtures("as_it_is", "falling_then_rising")
def test_weights_that_were_never_written_are_not_missed(
    new_trainer: NewTrainer, path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = new_trainer()
    handler = best(tmp_path / "models")
    checkpoint(trainer, path).attach(trainer)
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


def test_lack_of_memory_is_told_with_the_cure(new_trainer: NewTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*arguments: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(StyleGAN2Trainer, "_train_generator", no_memory)
    with pytest.raises(TooLittleMemory, match=r"The training of the GAN ran out of memory\. Give a smaller batch_size"):
        new_trainer().run()
