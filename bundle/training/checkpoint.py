# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints from which trainings resume."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Any

from ignite.engine import Engine, Events

from bundle.files import load_tensors, save_tensors, sweep_temporary
from bundle.lock import run_lock
from bundle.networks.weights import WeightsError

__all__ = ["CheckpointError", "TrainingCheckpoint", "changed_settings"]


class CheckpointError(ValueError):
    """A checkpoint from which a training with these options cannot resume."""


def changed_settings(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Describes which settings differ between the training that wrote a file and the current one.

    Args:
        path: path of the file, for the message.
        old: settings of the training that wrote the file, by name.
        new: settings of the current training, by name.

    Returns:
        The beginning of an error message that lists each changed setting with both values; empty if none differs.
    """
    changed = [
        f"{name} = {old.get(name)!r}, now it is {new.get(name)!r}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
    if not changed:
        return ""
    return f"{path} was trained with {'; '.join(changed)}. Give the old value{'s'[: len(changed) - 1]}"


class TrainingCheckpoint:
    """Saves the complete state of a training and resumes from it.

    The checkpoint is loaded when the handler is attached, so that the engine's position is known before it runs. Ctrl-C
    and SIGTERM save a checkpoint after the current iteration; SIGKILL or a crash loses the work since the last one.

    Args:
        path: path of the checkpoint; replaced atomically.
        settings: options by name that must be the same when the run resumes.
        parts: objects to save by name, with ``training_state()`` and ``load_training_state(state)``.
        interval: iterations between two checkpoints.
    """

    def __init__(self, path: str | os.PathLike[str], settings: dict[str, Any], parts: dict[str, Any], interval: int):
        self.path = Path(path)
        self.settings = settings
        self.parts = parts
        self.interval = interval
        self._signal: int | None = None
        self._previous: dict[int, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Loads the checkpoint, if it exists, and registers the events that write it.

        Raises:
            CheckpointError: it belongs to a run with other options, or is damaged.
        """
        sweep_temporary(self.path.parent)
        if self.path.exists():
            self._load()
        engine.add_event_handler(Events.STARTED, self._catch_signals)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._on_iteration)
        engine.add_event_handler(Events.COMPLETED, self._on_completed)

    def lock(self) -> AbstractContextManager[None]:
        """Returns a context that prevents other runs from using the checkpoint.

        Raises:
            InUseError: another run uses it.
        """
        return run_lock(self.path.parent, self.path.with_suffix(".lock"))

    def save(self) -> None:
        """Writes the checkpoint."""
        content = {"settings": self.settings}
        content.update({name: part.training_state() for name, part in self.parts.items()})
        save_tensors(self.path, content)

    def _load(self) -> None:
        try:
            if not self.path.is_file():  # opening a pipe would block
                raise OSError(f"{self.path} is not a file")
            content = load_tensors(self.path)
            settings = dict(content["settings"])
        except Exception as error:  # a damaged file can raise any type
            raise CheckpointError(
                f"{self.path} is not a readable checkpoint. Move it away to train from the start."
            ) from error
        if changed := changed_settings(self.path, settings, self.settings):
            raise CheckpointError(f"{changed} to resume, or another output_dir to start again.")
        try:
            for name, part in self.parts.items():
                part.load_training_state(content[name])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, WeightsError):
                raise
            raise CheckpointError(
                f"{self.path} does not hold the state of this training: it is damaged, or of another version of the "
                f"bundle. Move it away to train from the start."
            ) from error

    def _catch_signals(self, engine: Engine) -> None:
        def remember(number: int, frame: FrameType | None) -> None:
            self._signal = number
            signal.signal(number, self._previous[number])  # a second signal has its usual effect

        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, remember)
            except ValueError:  # only the main thread may set signal handlers
                return

    def _on_iteration(self, engine: Engine) -> None:
        if self._signal is not None:
            self.save()
            self._restore_signals()
            print(
                f"\nStopped at iteration {engine.state.iteration}, saved {self.path}; the same command resumes.",
                file=sys.stderr,
            )
            raise SystemExit(128 + self._signal)
        if engine.state.iteration % self.interval == 0:
            self.save()

    def _on_completed(self, engine: Engine) -> None:
        self.save()
        self._restore_signals()

    def _restore_signals(self) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous.clear()
