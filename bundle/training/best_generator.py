# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Selection of the best generator during a GAN's training."""

from __future__ import annotations

import copy
import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from bundle.files import sha256_file, sweep_temporary
from bundle.metrics.distribution import frechet_distance, kid
from bundle.metrics.features import FEATURES, TrunkUnavailable, squeezenet_features
from bundle.metrics.lpips import lpips_model, mean_pairwise
from bundle.networks.sampling import fixed_latents, sample_images
from bundle.networks.stylegan2 import Generator
from bundle.networks.weights import UnsealedError, WeightsError, half_state, load_weights, save_weights
from bundle.training.core import every_kimg
from bundle.training.spread import calibrate_spread
from bundle.training.stylegan2_trainer import StyleGAN2Trainer

__all__ = ["BestGenerator"]

logger = logging.getLogger(__name__)


class BestGenerator:
    """Measures KID and a Frechet distance to held-out images, and keeps the best generator with its discriminator.

    Measured and kept is the averaged generator, with the spread of its latents calibrated so that samples vary as much
    as the training images (`calibrate_spread`). Distances and variety are computed in SqueezeNet 1.1 features. If its
    weights are unavailable or fewer than 2 images are held out, nothing is measured: a warning is logged, and the
    latest weights are kept uncalibrated.

    Args:
        reals: held-out images [N, C, H, W] in [-1, 1]: the val split.
        train: training images, dictionaries with ``image`` [C, H, W] in [-1, 1] and ``label``; at least two per class.
        models_dir: folder that receives ``generator`` and ``discriminator``, each as a ``.pt`` and ``.json`` pair.
        info: description of the data for the weights' JSON.
        interval_kimg: thousands of images between two measurements.
        n_samples: images generated per measurement.
        squeezenet_file: the feature network's weights; None lets torchvision find them.
        calibrate: whether to calibrate the spread of the latents.
    """

    def __init__(
        self,
        reals: Tensor,
        train: Dataset[dict[str, Any]],
        models_dir: str | os.PathLike[str],
        info: dict[str, Any],
        interval_kimg: float,
        n_samples: int = 512,
        squeezenet_file: str | os.PathLike[str] | None = None,
        calibrate: bool = True,
    ) -> None:
        self.reals = reals
        self.train = train
        self.models_dir = Path(models_dir)
        self.info = info
        self.interval_kimg = interval_kimg
        self.n_samples = n_samples
        self.squeezenet_file = squeezenet_file
        self.calibrate = calibrate
        self.best_kid: float | None = None
        self.history: list[dict[str, float]] = []
        self._features: Tensor | None = None
        self._variety: list[float] | None = None
        self._unavailable = False
        self._kept: dict[str, Any] | None = None

    def attach(self, engine: StyleGAN2Trainer) -> None:
        """Registers a measurement every ``interval_kimg`` and at the end."""
        sweep_temporary(self.models_dir)
        every_kimg(engine, self.interval_kimg, self.measure)

    def training_state(self) -> dict[str, Any]:
        """Returns the best KID so far, the history of measurements and the kept weights in half precision."""
        return {"best_kid": self.best_kid, "history": self.history, "kept": self._kept}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restores what `training_state` returned; checkpoints of earlier versions lack the kept weights."""
        self.best_kid, self.history, self._kept = state["best_kid"], state["history"], state.get("kept")

    def restore(self, engine: StyleGAN2Trainer) -> bool:
        """Writes the kept weights of this run again if they are missing from the folder or damaged.

        Weights of another run are neither accepted as this run's nor overwritten. If the checkpoint of an earlier
        version lacks the kept weights, the next measurement writes the current ones; for a finished run, it takes place
        at once.

        Args:
            engine: trainer in the state of the checkpoint.

        Returns:
            Whether a new measurement was made, so that the checkpoint does not have its weights yet.

        Raises:
            UnsealedError: the run is finished, and its weights were written by an earlier version.
            WeightsError: the weights in the folder are another run's.
        """
        names = ("generator", "discriminator")
        try:
            found = {name: load_weights(self.models_dir / f"{name}.pt")[1] for name in names}
        except UnsealedError:
            if self._kept is None and not engine.is_finished:
                return False  # commands that load these weights report how to seal them
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
            known = hashes  # checkpoint of an earlier version, without hashes
        # A run that is killed between a measurement and the next checkpoint will reproduce the same weights.
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
        """Measures the generator, and saves the weights if they are the best so far."""
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
            self._calibrate(engine, generator)
        scores = self._distances(engine, generator)
        self.history.append({"kimg": engine.images_seen / 1000.0, **scores})
        engine.state.metrics.update(scores)
        value = scores["kid_val"]
        if self.best_kid is None or value < self.best_kid:
            self.best_kid = value
            spread = [round(float(value), 3) for value in generator.mapping.spread]
            self._save(engine, generator, {**scores, "features": FEATURES, "spread": spread})

    def _calibrate(self, engine: StyleGAN2Trainer, generator: Generator) -> None:
        model = lpips_model(self.squeezenet_file)

        def measure(images: Tensor) -> float:
            return mean_pairwise(images, model, engine.state.device)

        if self._variety is None:
            classes: list[list[Tensor]] = [[] for _ in range(generator.num_classes)]
            for index in range(len(self.train)):  # type: ignore[arg-type]
                item = self.train[index]
                classes[int(item["label"])].append(torch.as_tensor(item["image"]))
            self._variety = [measure(torch.stack(images)) for images in classes]
        calibrate_spread(generator, self._variety, measure, seed=engine.own_seed)

    def _distances(self, engine: StyleGAN2Trainer, generator: Generator) -> dict[str, float]:
        device = engine.state.device
        if self._features is None:
            self._features = squeezenet_features(self.reals, self.squeezenet_file, device=device)
        latents = fixed_latents(self.n_samples, generator.z_dim, generator.num_classes, engine.own_seed + 1)
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
