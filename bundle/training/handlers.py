# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Ignite handlers of the GAN's training: checkpoint and resume, progress, sample grids, distances, best weights."""

from __future__ import annotations

import copy
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from bundle.figures import image_grid, save_png
from bundle.files import load_tensors, save_tensors, sha256_file, sweep_temporary
from bundle.lock import run_lock
from bundle.metrics.distribution import frechet_distance, kid
from bundle.metrics.features import FEATURES, TrunkUnavailable, squeezenet_features
from bundle.metrics.lpips import lpips_model, mean_pairwise
from bundle.networks.sampling import sample_images, sample_z
from bundle.networks.stylegan2 import Generator
from bundle.networks.weights import UnsealedError, WeightsError, half_state, load_weights, save_weights
from bundle.training.spread import calibrate_spread
from bundle.training.stylegan2_trainer import StyleGAN2Trainer

__all__ = [
    "BestGenerator",
    "CheckpointError",
    "GanProgress",
    "SampleGrid",
    "TrainingCheckpoint",
    "differences",
    "fixed_latents",
]

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that cannot be gone on from with these options."""


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns what differs between two trainings' settings, each by its name with both values."""
    return [
        f"{name} = {old.get(name)!r}, now it is {new.get(name)!r}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


class TrainingCheckpoint:
    """Saves all that a run needs to go on, and goes on from it.

    Loading happens when the handler is attached, so an engine knows where it stands before it runs. Ctrl-C and SIGTERM
    end the run after the iteration at hand, with a checkpoint; anything harder costs the iterations since the last one.

    Args:
        path: the file; replaced as a whole.
        settings: options that must be the same when the run goes on, by name.
        parts: what to save, by name: objects with ``training_state()`` and ``load_training_state(state)``.
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
        """Loads the checkpoint, if there is one, and registers the events that write it.

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
        """Keeps other runs away from the checkpoint.

        Raises:
            InUseError: another run has it.
        """
        return run_lock(self.path.parent, self.path.with_suffix(".lock"))

    def save(self) -> None:
        """Writes the checkpoint."""
        content = {"settings": self.settings}
        content.update({name: part.training_state() for name, part in self.parts.items()})
        save_tensors(self.path, content)

    def _load(self) -> None:
        try:
            if not self.path.is_file():  # a pipe would be waited for without end
                raise OSError(f"{self.path} is not a file")
            content = load_tensors(self.path)
            settings = dict(content["settings"])
        except Exception as error:  # whatever a damaged file makes the unpickler raise
            raise CheckpointError(
                f"{self.path} is not a readable checkpoint. Move it away to train from the start."
            ) from error
        changed = differences(settings, self.settings)
        if changed:
            raise CheckpointError(
                f"{self.path} was trained with {'; '.join(changed)}. Give the old value{'s'[: len(changed) - 1]} to go "
                f"on, or another output_dir to start anew."
            )
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
            signal.signal(number, self._previous[number])  # a second one acts at once

        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, remember)
            except ValueError:  # not in the main thread: signals are somebody else's there
                return

    def _on_iteration(self, engine: Engine) -> None:
        if self._signal is not None:
            self.save()
            self._restore_signals()
            print(
                f"\nStopped at iteration {engine.state.iteration}, saved {self.path}; the same command goes on.",
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


class GanProgress:
    """Progress bar over the images of the whole run: images/s, time left, losses and the augmentation's p."""

    def attach(self, engine: Engine) -> None:
        """Registers the events that open, advance and close the bar."""
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.COMPLETED, lambda: self._bar.close())

    def _open(self, engine: StyleGAN2Trainer) -> None:
        batch = engine.sampler.batch_size
        total = engine.state.max_epochs * engine.state.epoch_length * batch
        self._bar = tqdm(
            total=total,
            initial=engine.state.iteration * batch,
            unit="image",
            unit_scale=True,
            desc="training the GAN",
            mininterval=0.5 if sys.stderr.isatty() else 60.0,
            dynamic_ncols=True,
        )

    def _advance(self, engine: StyleGAN2Trainer) -> None:
        output: dict[str, Any] = engine.state.output
        self._bar.set_postfix({name: f"{output[name]:.2f}" for name in ("g_loss", "d_loss", "p", "r_t")}, refresh=False)
        self._bar.update(output["reals"].shape[0])


def fixed_latents(n: int, z_dim: int, num_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Latents z [n, z_dim] ~ N(0, I) and labels [n], the classes in turn, that depend on the arguments alone."""
    return sample_z(range(n), z_dim, seed), torch.arange(n) % num_classes


class SampleGrid:
    """Draws the averaged generator's images of fixed latents, one row of each class.

    Args:
        folder: gets ``kimg_NNNNNN.png``.
        interval_kimg: thousands of images between two pictures.
        class_names: name of each label.
        seed: of the latents.
        n: images in a row.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        interval_kimg: float,
        class_names: Sequence[str],
        seed: int = 0,
        n: int = 16,
    ) -> None:
        self.folder = Path(folder)
        self.interval_kimg = interval_kimg
        self.class_names = tuple(class_names)
        self.seed = seed
        self.n = n

    def attach(self, engine: Engine) -> None:
        """Registers the pictures every ``interval_kimg`` and at the end."""
        every_kimg(engine, self.interval_kimg, self.draw)

    def draw(self, engine: StyleGAN2Trainer) -> None:
        """Writes one picture."""
        generator = engine.average
        classes = len(self.class_names)
        images = sample_images(generator, *fixed_latents(self.n * classes, generator.z_dim, classes, self.seed))
        path = self.folder / f"kimg_{engine.images_seen // 1000:06d}.png"
        rows = torch.cat([images[label::classes] for label in range(classes)])
        save_png(image_grid(rows, len(rows) // classes, self.class_names), path)
        engine.state.last_sample_grid = str(path)  # where a tracking handler finds the picture


def every_kimg(engine: Engine, interval_kimg: float, function: Any) -> None:
    """Calls ``function(engine)`` whenever another ``interval_kimg`` thousand images are done, and at the end."""

    def on_iteration(engine: StyleGAN2Trainer) -> None:
        batch = engine.state.output["reals"].shape[0]
        interval = interval_kimg * 1000.0
        if engine.images_seen // interval > (engine.images_seen - batch) // interval or engine.is_finished:
            function(engine)

    engine.add_event_handler(Events.ITERATION_COMPLETED, on_iteration)


class BestGenerator:
    """Measures KID and a Frechet distance to held-out images and keeps the best generator and its discriminator.

    What is measured and kept is the averaged generator at the spread at which its samples vary as much as the training
    images (`calibrate_spread`). Distances and variety are taken in SqueezeNet 1.1 features. Where its weights are not
    to be had, or fewer than 2 images are held out, nothing is measured, a warning says so, and the latest weights are
    kept as they are.

    Args:
        reals: held-out images [N, C, H, W] in [-1, 1]: the val split.
        train: what is trained on: dictionaries with ``image`` [C, H, W] in [-1, 1] and ``label``, each class at least
            twice.
        models_dir: gets ``generator`` and ``discriminator``, each as a pair of files.
        info: what the weights' JSON says of the data.
        interval_kimg: thousands of images between two measurements.
        n_samples: images generated for one.
        seed: of their latents.
        squeezenet_file: the feature network's weights; None lets torchvision find them.
        calibrate: False leaves the spread of the latents as it is.
    """

    def __init__(
        self,
        reals: Tensor,
        train: Dataset[dict[str, Any]],
        models_dir: str | os.PathLike[str],
        info: dict[str, Any],
        interval_kimg: float,
        n_samples: int = 512,
        seed: int = 0,
        squeezenet_file: str | os.PathLike[str] | None = None,
        calibrate: bool = True,
    ) -> None:
        self.reals = reals
        self.train = train
        self.models_dir = Path(models_dir)
        self.info = info
        self.interval_kimg = interval_kimg
        self.n_samples = n_samples
        self.seed = seed
        self.squeezenet_file = squeezenet_file
        self.calibrate = calibrate
        self.best_kid: float | None = None
        self.history: list[dict[str, float]] = []
        self._features: Tensor | None = None
        self._variety: list[float] | None = None
        self._unavailable = False
        self._kept: dict[str, Any] | None = None

    def attach(self, engine: Engine) -> None:
        """Registers a measurement every ``interval_kimg`` and at the end."""
        sweep_temporary(self.models_dir)
        every_kimg(engine, self.interval_kimg, self.measure)

    def training_state(self) -> dict[str, Any]:
        """The best KID so far, the course of the measures, and the weights that were kept, as they were written."""
        return {"best_kid": self.best_kid, "history": self.history, "kept": self._kept}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Takes over what `training_state` returned; an earlier version's checkpoint has no weights that were kept."""
        self.best_kid, self.history, self._kept = state["best_kid"], state["history"], state.get("kept")

    def restore(self, engine: StyleGAN2Trainer) -> bool:
        """Writes weights again that a run which goes on, or is finished, has kept, if they are absent or damaged.

        Weights of another run are neither taken for these nor overwritten.

        A checkpoint of an earlier version does not have them. Then the next measurement writes the weights that it
        finds, as the first one of a run does; that of a finished run is made at once.

        Args:
            engine: stands where the checkpoint stood.

        Returns:
            Whether the weights were measured anew, so that the checkpoint does not have them yet.

        Raises:
            UnsealedError: the run is finished, and an earlier version has written the weights.
            WeightsError: the weights in the folder are another run's.
        """
        names = ("generator", "discriminator")
        try:
            found = {name: load_weights(self.models_dir / f"{name}.pt")[1] for name in names}
        except UnsealedError:
            if self._kept is None and not engine.is_finished:
                return False  # whoever needs these weights is told how to seal them
            if self._kept is None:
                raise
        except WeightsError:
            if engine.state.iteration == 0:
                return False
        else:
            self._check_owner(found, engine)
            return False
        if self._kept is None and not self.history:
            return False  # nothing has been measured yet
        if self._kept is not None:
            for name, network in zip(names, (engine.average, engine.discriminator), strict=True):
                network = copy.deepcopy(network)
                network.load_state_dict(self._kept[name], strict=True)
                save_weights(network, self.models_dir / f"{name}.pt", self._kept["info"])
            logger.warning(
                "The weights in %s were absent or damaged; those of the checkpoint are back.", self.models_dir
            )
            return False
        logger.warning(
            "The weights in %s are absent or damaged, and the checkpoint of an earlier version does not have them: the "
            "next ones that are measured take their place, better or not.",
            self.models_dir,
        )
        self.best_kid = None
        if engine.is_finished:
            self.measure(engine)
        return bool(engine.is_finished)

    def _check_owner(self, found: dict[str, dict[str, Any]], engine: StyleGAN2Trainer) -> None:
        hashes = {name: info["sha256"] for name, info in found.items()}
        known = {} if self._kept is None else self._kept.get("sha256", hashes)
        if self._kept is None and self.history:
            known = hashes  # by a checkpoint of an earlier version
        # A run that was killed after a measurement and before the next checkpoint comes to the same weights again.
        mine = json.loads(json.dumps(self.info))
        later = all(
            info.get("images_seen", 0) > engine.images_seen and mine.items() <= info.items() for info in found.values()
        )
        if hashes != known and not later:
            raise WeightsError(
                f"{self.models_dir} holds a generator and a discriminator that this run has not written. Name another "
                f"output_dir, or move them away and run the same command again (with init_from, to train on from them)."
            )

    def measure(self, engine: StyleGAN2Trainer) -> None:
        """Measures, and saves the weights if they are the best so far."""
        if len(self.reals) < 2:
            self._give_up("they need 2 images in the val split. Add images, or a split column that holds some out.")
        if not self._unavailable:
            try:
                self._measure(engine)
            except TrunkUnavailable as error:
                self._give_up(error)
        if self._unavailable:
            self._save(engine, engine.average, {})

    def _measure(self, engine: StyleGAN2Trainer) -> None:
        generator = copy.deepcopy(engine.average)
        if self.calibrate:
            self._calibrate(generator, engine.state.device)
        scores = self._distances(engine, generator)
        self.history.append({"kimg": engine.images_seen / 1000.0, **scores})
        engine.state.metrics.update(scores)
        value = scores["kid_val"]
        if self.best_kid is None or value < self.best_kid:
            self.best_kid = value
            spread = [round(float(value), 3) for value in generator.mapping.spread]
            self._save(engine, generator, {**scores, "features": FEATURES, "spread": spread})

    def _calibrate(self, generator: Generator, device: torch.device) -> None:
        model = lpips_model(self.squeezenet_file)

        def measure(images: Tensor) -> float:
            return mean_pairwise(images, model, device)

        if self._variety is None:
            classes: list[list[Tensor]] = [[] for _ in range(generator.num_classes)]
            for index in range(len(self.train)):  # type: ignore[arg-type]
                item = self.train[index]
                classes[int(item["label"])].append(torch.as_tensor(item["image"]))
            self._variety = [measure(torch.stack(images)) for images in classes]
        calibrate_spread(generator, self._variety, measure, seed=self.seed)

    def _distances(self, engine: StyleGAN2Trainer, generator: Generator) -> dict[str, float]:
        device = engine.state.device
        if self._features is None:
            self._features = squeezenet_features(self.reals, self.squeezenet_file, device=device)
        latents = fixed_latents(self.n_samples, generator.z_dim, generator.num_classes, self.seed + 1)
        features = squeezenet_features(sample_images(generator, *latents), self.squeezenet_file, device=device)
        return {
            "kid_val": kid(features, self._features),
            "frechet_val": frechet_distance(features, self._features),
        }

    def _give_up(self, reason: object) -> None:
        if not self._unavailable:
            logger.warning(
                "No KID and no Frechet distance, the latest weights are kept instead of the best: %s", reason
            )
        self._unavailable = True

    def _save(self, engine: StyleGAN2Trainer, generator: Generator, scores: dict[str, Any]) -> None:
        info = {**self.info, "images_seen": engine.images_seen, "scores": scores}
        save_weights(generator, self.models_dir / "generator.pt", info)
        save_weights(engine.discriminator, self.models_dir / "discriminator.pt", info)
        networks = {"generator": generator, "discriminator": engine.discriminator}
        self._kept = {
            "info": info,
            "sha256": {name: sha256_file(self.models_dir / f"{name}.pt") for name in networks},
            **{name: half_state(network) for name, network in networks.items()},
        }
