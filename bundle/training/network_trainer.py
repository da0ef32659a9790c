# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""What the trainings of networks of real images share: seeds, checkpoints, progress, the schedule, the weights."""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.handlers import LrScheduleHandler
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from bundle.files import sweep_temporary
from bundle.networks.weights import (
    UnsealedError,
    WeightsError,
    half_state,
    load_weights,
    read_info,
    save_weights,
)
from bundle.precision import bf16_autocast
from bundle.training.gradients import require_finite_gradients
from bundle.training.handlers import TrainingCheckpoint, differences
from bundle.training.memory import tell_of_memory
from bundle.training.seeds import stream_seed

__all__ = [
    "AutocastInferer",
    "BatchSampler",
    "NetworkTrainer",
    "TrainingError",
    "TrainingProgress",
    "flat_numbers",
    "role_seed",
]

# Stream of random numbers that each iteration has of its own; samplers take stream 0.
STEP = 1


class TrainingError(ValueError):
    """A network that cannot be trained as asked; the message tells the cure."""


class BatchSampler(Protocol):
    """Endless batches that depend on the seed and their own number alone; ``start`` is the number of the first one."""

    start: int
    batch_size: int

    def __iter__(self) -> Any:
        """Yields lists of indices."""


def role_seed(name: str, seed: int) -> int:
    """Returns the seed of one network's training, below 2^31: another one for every name."""
    return int.from_bytes(hashlib.sha256(f"{name} {seed}".encode()).digest()[:4], "big") >> 1


class AutocastInferer(SimpleInferer):
    """Calls the network on images in channels_last, in bf16 on devices that compute in it."""

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Maps images [B, C, H, W] to the network's output in fp32."""
        with bf16_autocast(inputs.device):
            return network(inputs.contiguous(memory_format=torch.channels_last), *args, **kwargs).float()


class TrainingProgress:
    """Progress bar over a network's images: images/s, time left, loss and accuracy on changed training images."""

    def __init__(self, name: str) -> None:
        self.name = name

    def attach(self, engine: Engine) -> None:
        """Registers the events that open, advance and close the bar."""
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.COMPLETED, lambda: self._bar.close())

    def _open(self, engine: NetworkTrainer) -> None:
        batch = engine.batch_size
        self._accuracy = math.nan
        self._bar = tqdm(
            total=engine.state.max_epochs * engine.state.epoch_length * batch,
            initial=engine.state.iteration * batch,
            unit="image",
            unit_scale=True,
            desc=f"training {self.name}",
            mininterval=0.5 if sys.stderr.isatty() else 60.0,
            dynamic_ncols=True,
        )

    def _advance(self, engine: NetworkTrainer) -> None:
        output: dict[str, Any] = engine.state.output
        value = output["accuracy"]
        self._accuracy = value if math.isnan(self._accuracy) else 0.95 * self._accuracy + 0.05 * value
        postfix = {"loss": f"{float(output['loss']):.2f}", "accuracy": f"{self._accuracy:.1%}"}
        self._bar.set_postfix(postfix, refresh=False)
        self._bar.update(engine.batch_size)


class _SaveAtEnd:
    """Saves before the run is over, so that handlers which record the last epoch find the scores among its metrics."""

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _save(self, engine: NetworkTrainer) -> None:
        if engine.is_finished:
            engine.state.metrics.update(flat_numbers(engine.save()))


def flat_numbers(scores: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Returns the numbers of nested scores under names that MLflow takes, such as ``top1_unseen/gamma 0.6``."""
    flat: dict[str, float] = {}
    for name, value in scores.items():
        name = "".join(letter if letter.isalnum() or letter in "_-. " else " " for letter in name)
        if isinstance(value, dict):
            flat.update(flat_numbers(value, f"{prefix}{name}/"))
        else:
            flat[prefix + name] = float(value)
    return flat


class NetworkTrainer(SupervisedTrainer):
    """Trains one network with AdamW on a one-cycle schedule, measures it and writes its weights.

    An iteration draws all its random numbers from a stream that its own number seeds: a run that goes on from its
    checkpoint is bit for bit the run that was never stopped. A finished network is checked and not trained again.

    Args:
        name: of the weight file; the seed is derived from it.
        description: of the data behind the network, see `weights_info`: part of the weights' JSON.
        dataset: what to train on.
        sampler: draws the batches from it.
        epoch_length: batches in an epoch.
        network: trained in place.
        prepare_batch: turns a batch of the dataset into the network's input and what is wanted of it.
        loss_function: of the network's output and what is wanted.
        settings: further options that must be the same when the run goes on.
        output_dir: gets ``models/<name>.pt`` and ``.json``, and ``checkpoints/<name>.pt``, which in the end holds the
            finished weights alone: should those in ``models`` be deleted or damaged, they are written again.
        device: where to train.
        max_epochs: passes over the training images.
        learning_rate: the highest of the one-cycle schedule (Smith and Topin, 2018).
        weight_decay: of AdamW.
        seed: of the whole set of networks; every one derives its own.
        checkpoint_epochs: epochs between two checkpoints.
        inferer: calls the network.
        train_handlers: further Ignite handlers.
        collate_fn: puts a batch together, see `torch.utils.data.DataLoader`; None stacks its items.

    Raises:
        TrainingError: the weights of another training are in the way, or damaged ones that no checkpoint has.
        UnsealedError: the weights are there, written by an earlier version.
        CheckpointError: the checkpoint is damaged, or of a training with other options.
        TooLittleMemory: by `run`.
        DivergedError: by `run`, in the iteration in which a gradient is no longer finite.
    """

    def __init__(
        self,
        name: str,
        description: dict[str, Any],
        dataset: Dataset[Any],
        sampler: BatchSampler,
        epoch_length: int,
        network: nn.Module,
        prepare_batch: Callable[..., Any],
        loss_function: Callable[..., Tensor],
        settings: dict[str, Any],
        output_dir: str | os.PathLike[str],
        device: torch.device | str,
        max_epochs: int,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.05,
        seed: int = 0,
        checkpoint_epochs: int = 5,
        inferer: Inferer | None = None,
        train_handlers: Sequence[Any] | None = None,
        collate_fn: Callable[[Any], Any] | None = None,
    ) -> None:
        network = network.to(memory_format=torch.channels_last).requires_grad_(True)
        network.to(device)
        # Scales, thresholds, biases and the gains of batch norm are no weights to be kept small.
        groups: list[dict[str, Any]] = [
            {"params": [value for value in network.parameters() if value.ndim > 1]},
            {"params": [value for value in network.parameters() if value.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay, fused=True)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, learning_rate, total_steps=max_epochs * epoch_length + 1, pct_start=0.15
        )
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            train_data_loader=DataLoader(dataset, batch_sampler=cast(Any, sampler), collate_fn=collate_fn),
            epoch_length=epoch_length,
            network=network,
            optimizer=optimizer,
            loss_function=loss_function,
            prepare_batch=prepare_batch,
            inferer=AutocastInferer() if inferer is None else inferer,
            train_handlers=[
                _SaveAtEnd(),
                LrScheduleHandler(cast(Any, self.scheduler), print_lr=False, epoch_level=False),
                *(train_handlers or []),
                TrainingProgress(name),
            ],
            decollate=False,
            optim_set_to_none=True,
        )
        self.name = name
        self.description = description
        self.sampler = sampler
        self.seed = seed
        self.own_seed = role_seed(name, seed)
        self.weights_path = Path(output_dir) / "models" / f"{name}.pt"
        self.settings: dict[str, Any] = {
            "max_epochs": max_epochs,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "seed": seed,
            "resolution": description["resolution"],
            "split_sha256": description["split_sha256"],
            **settings,
        }
        self.checkpoint = TrainingCheckpoint(
            Path(output_dir) / "checkpoints" / f"{name}.pt",
            self.settings,
            {"trainer": self},
            interval=checkpoint_epochs * epoch_length,
        )
        self.add_event_handler(
            IterationEvents.BACKWARD_COMPLETED, lambda: require_finite_gradients(network, name, self.state.iteration)
        )
        self.is_saved = False
        sweep_temporary(self.weights_path.parent)
        damage = self._find_saved()
        if not self.is_saved:
            self.checkpoint.attach(self)
        if damage is not None and not self.is_saved:
            raise TrainingError(
                f"{damage} Or remove {self.weights_path.with_suffix('.json')} to train the network anew."
            ) from damage

    def measure(self) -> dict[str, Any]:
        """Calibrates and measures the trained network, which is in evaluation mode.

        Returns:
            Further entries of the weights' JSON, ``scores`` among them.
        """
        raise NotImplementedError

    def accuracy(self, output: dict[str, Any]) -> float:
        """Returns the accuracy of an iteration's output."""
        raise NotImplementedError

    @property
    def batch_size(self) -> int:
        """Images in a batch."""
        return self.sampler.batch_size

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done."""
        return bool(self.state.iteration >= self.state.max_epochs * self.state.epoch_length)

    def run(self) -> None:  # type: ignore[override]
        """Trains to the last epoch, from wherever the state stands; then calibrates, measures and saves."""
        if self.is_saved:
            print(f"{self.weights_path} is complete and as it was written. Nothing to train.")
            return
        with self.checkpoint.lock():
            if not self.is_finished:  # Ignite would take a finished engine for a new one and start over
                with tell_of_memory(self.name):
                    super().run()
            if not self.is_saved:  # killed between its last checkpoint and its weights
                self.save()
                self.checkpoint.save()

    def training_state(self) -> dict[str, Any]:
        """All that a run needs to go on bit for bit, or the finished weights; tensors and plain values only."""
        if self.is_saved:
            return {"saved": {"network": half_state(self.network), "info": read_info(self.weights_path)}}
        return {
            "iteration": self.state.iteration,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Takes over what `training_state` returned; finished weights are written again."""
        if "saved" in state:
            self.network.load_state_dict(state["saved"]["network"], strict=True)
            save_weights(self.network, self.weights_path, state["saved"]["info"])
            self.is_saved = True
            print(f"{self.weights_path} was absent or damaged; {self.checkpoint.path} had it.")
            return
        self.network.load_state_dict(state["network"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.state.iteration = state["iteration"]
        self.state.epoch = state["iteration"] // self.state.epoch_length
        self.sampler.start = state["iteration"]

    def save(self) -> dict[str, Any]:
        """Calibrates the network, measures it and writes the pair of files.

        Returns:
            The scores.
        """
        self.network.eval()
        found = self.measure()
        info = {
            **self.description,
            "seed": self.seed,
            "epochs": self.state.max_epochs,
            "training": self.settings,
            **found,
        }
        save_weights(self.network, self.weights_path, info)
        self.is_saved = True
        scores: dict[str, Any] = found["scores"]
        return scores

    def _find_saved(self) -> WeightsError | None:
        """Checks the weights that are there, if any; returns what damage they have."""
        if not os.path.lexists(self.weights_path.with_suffix(".json")):
            return None
        try:
            _, info = load_weights(self.weights_path)
        except UnsealedError:
            raise
        except WeightsError as error:
            return error
        settings = info.get("training", {})
        changed = differences({key: settings.get(key) for key in self.settings}, self.settings)
        if changed:
            raise TrainingError(
                f"{self.weights_path} was trained with {'; '.join(changed)}. "
                f"Give the old value{'s'[: len(changed) - 1]}, or another output_dir."
            )
        self.is_saved = True
        return None

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> dict[str, Any]:
        torch.manual_seed(stream_seed(self.own_seed, STEP, self.state.iteration))
        output = super()._iteration(engine, batchdata)
        output["loss"] = output["loss"].detach()
        output["accuracy"] = self.accuracy(output)
        return output
