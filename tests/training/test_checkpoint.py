# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import signal
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events

from bundle import files
from bundle.lock import InUseError
from bundle.training.checkpoint import CheckpointError, TrainingCheckpoint
from bundle.training.stylegan2_trainer import StyleGAN2Trainer
from scripts.training import train_gan
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
    assert f"Stopped at iteration 2, saved {path}; the same command resumes." in capsys.readouterr().err
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
    words = r"resolution = 32, now it is 64; seed = 0, now it is 1\. Give the old values to resume"
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
