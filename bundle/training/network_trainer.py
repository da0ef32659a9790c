# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Common base of the trainings of classifiers, latent guides and audit networks: task, schedule and weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.handlers import LrScheduleHandler
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

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
from bundle.training.checkpoint import TrainingCheckpoint, changed_settings
from bundle.training.core import ResumableTrainer
from bundle.training.errors import TrainingError
from bundle.training.gradients import require_finite_gradients
from bundle.training.progress import TrainingProgress
from bundle.training.samplers import BatchSampler

__all__ = ["AutocastInferer", "NetworkTrainer", "TrainingTask", "flat_numbers", "role_seed"]


def role_seed(name: str, seed: int) -> int:
    """Returns the seed of one network's training, below 2^31, which differs between names."""
    return int.from_bytes(hashlib.sha256(f"{name} {seed}".encode()).digest()[:4], "big") >> 1


class AutocastInferer(SimpleInferer):
    """Calls the network on images in channels_last, in bf16 on devices that support it."""

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Maps images [B, C, H, W] to the network's output in fp32."""
        with bf16_autocast(inputs.device):
            return network(inputs.contiguous(memory_format=torch.channels_last), *args, **kwargs).float()


class _SaveAtEnd:
    """Saves when the last epoch ends, so that handlers attached later find the scores among that epoch's metrics."""

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _save(self, engine: NetworkTrainer) -> None:
        if engine.is_finished:
            engine.state.metrics.update(flat_numbers(engine.save()))


def flat_numbers(scores: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Returns the numbers of nested scores by names that MLflow accepts, such as ``top1_unseen/gamma 0.6``."""
    flat: dict[str, float] = {}
    for name, value in scores.items():
        name = "".join(letter if letter.isalnum() or letter in "_-. " else " " for letter in name)
        if isinstance(value, dict):
            flat.update(flat_numbers(value, f"{prefix}{name}/"))
        else:
            flat[prefix + name] = float(value)
    return flat


@dataclass(frozen=True)
class TrainingTask:
    """Network, data and loss of a training.

    Attributes:
        network: network to train, in place.
        dataset: training data.
        sampler: sampler of the batches; its length is the number of batches in an epoch.
        prepare_batch: converts a batch of the dataset to the network's input and the target.
        loss_function: loss of the network's output and the target.
        description: description of the training data for the weights' JSON, see `weights_info`.
        settings: further options that must be the same when the run resumes.
        collate_fn: collation of items to a batch, see `torch.utils.data.DataLoader`; None for the default.
    """

    network: nn.Module
    dataset: Dataset[Any]
    sampler: BatchSampler
    prepare_batch: Callable[..., Any]
    loss_function: Callable[..., Tensor]
    description: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    collate_fn: Callable[[Any], Any] | None = None


class NetworkTrainer(ResumableTrainer, SupervisedTrainer):
    """Trains one network with AdamW on a one-cycle schedule, evaluates it and writes its weights.

    A finished network is verified and not trained again.

    Args:
        name: name of the weight file, from which the network's seed is derived.
        task: network, data and loss.
        output_dir: folder that receives ``models/<name>.pt`` and ``.json``, and ``checkpoints/<name>.pt``, which
            finally holds a copy of the weights that replaces them if they are deleted or damaged.
        device: device to train on.
        max_epochs: passes over the training data.
        learning_rate: maximum learning rate of the one-cycle schedule (Smith and Topin, 2018).
        weight_decay: weight decay of AdamW.
        max_norm: largest norm of the gradient, to which larger ones are scaled down; None for any.
        seed: random seed shared by the set of networks; each derives its own from it.
        checkpoint_epochs: epochs between two checkpoints.
        inferer: inferer that calls the network; None for `AutocastInferer`.
        tracking: factory of a handler that records the training, called with ``run_name``, the network's name.
        train_handlers: further Ignite handlers.

    Raises:
        TrainingError: the folder holds another training's weights, or damaged ones without a copy in a checkpoint.
        UnsealedError: the weights exist and were written by an earlier version.
        CheckpointError: the checkpoint is damaged or belongs to a training with other options.
        TooLittleMemory: by `run`.
        DivergedError: by `run`, in the iteration in which a gradient is no longer finite.
    """

    def __init__(
        self,
        name: str,
        task: TrainingTask,
        output_dir: str | os.PathLike[str],
        device: torch.device | str,
        max_epochs: int,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.05,
        max_norm: float | None = None,
        seed: int = 0,
        checkpoint_epochs: int = 5,
        inferer: Inferer | None = None,
        tracking: Callable[..., Any] | None = None,
        train_handlers: Sequence[Any] = (),
    ) -> None:
        network = task.network.to(memory_format=torch.channels_last).requires_grad_(True)
        network.to(device)
        epoch_length = len(task.sampler)
        optimizer, self.scheduler = _one_cycle(network, learning_rate, weight_decay, max_epochs * epoch_length)
        super().__init__(
            name,
            role_seed(name, seed),
            task.sampler,
            device=device,
            max_epochs=max_epochs,
            train_data_loader=DataLoader(task.dataset, batch_sampler=task.sampler, collate_fn=task.collate_fn),
            epoch_length=epoch_length,
            network=network,
            optimizer=optimizer,
            loss_function=task.loss_function,
            prepare_batch=task.prepare_batch,
            inferer=AutocastInferer() if inferer is None else inferer,
            train_handlers=[
                _SaveAtEnd(),
                LrScheduleHandler(cast(Any, self.scheduler), print_lr=False, epoch_level=False),
                *([] if tracking is None else [tracking(run_name=name)]),
                *train_handlers,
                TrainingProgress({"loss": ".2f", "accuracy": ".1%"}, smoothed=["accuracy"]),
            ],
            decollate=False,
            optim_set_to_none=True,
        )
        self.name = name
        self.description = task.description
        self.seed = seed
        self.weights_path = Path(output_dir) / "models" / f"{name}.pt"
        schedule = {"max_epochs": max_epochs, "learning_rate": learning_rate, "weight_decay": weight_decay}
        of_data = {key: task.description[key] for key in ("resolution", "split_sha256")}
        if max_norm is not None:
            schedule["max_norm"] = max_norm
        self.settings: dict[str, Any] = {**schedule, "seed": seed, **of_data, **task.settings}
        self.add_event_handler(
            IterationEvents.BACKWARD_COMPLETED, lambda: require_finite_gradients(network, name, self.state.iteration)
        )
        if max_norm is not None:
            self.add_event_handler(
                IterationEvents.BACKWARD_COMPLETED, lambda: nn.utils.clip_grad_norm_(network.parameters(), max_norm)
            )
        checkpoint_path = Path(output_dir) / "checkpoints" / f"{name}.pt"
        interval = checkpoint_epochs * epoch_length
        self.checkpoint = TrainingCheckpoint(checkpoint_path, self.settings, {"trainer": self}, interval)
        self._resume()

    def _resume(self) -> None:
        """Verifies the finished weights, or otherwise loads the checkpoint, if there is one."""
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
        """Calibrates and evaluates the trained network, which is in evaluation mode.

        Returns:
            Further entries of the weights' JSON, including ``scores``.
        """
        raise NotImplementedError

    def accuracy(self, output: dict[str, Any]) -> float:
        """Returns the accuracy of an iteration's output."""
        raise NotImplementedError

    def run(self) -> None:  # type: ignore[override]
        """Trains from the current state to the last epoch; then calibrates, evaluates and saves the network."""
        if self.is_saved:
            print(f"{self.weights_path} is complete and as it was written. Nothing to train.")
            return
        with self.checkpoint.lock():
            super().run()
            if not self.is_saved:  # killed after the last checkpoint and before saving
                self.save()
                self.checkpoint.save()

    def stateful(self) -> dict[str, Any]:
        """Returns the network, the optimiser and the schedule."""
        return {"network": self.network, "optimizer": self.optimizer, "scheduler": self.scheduler}

    def training_state(self) -> dict[str, Any]:
        """Returns the complete state for resuming, or the finished weights; tensors and plain values only."""
        if self.is_saved:
            return {"saved": {"network": half_state(self.network), "info": read_info(self.weights_path)}}
        return super().training_state()

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restores what `training_state` returned; finished weights are written again."""
        if "saved" not in state:
            super().load_training_state(state)
            return
        self.network.load_state_dict(state["saved"]["network"], strict=True)
        save_weights(self.network, self.weights_path, state["saved"]["info"])
        self.is_saved = True
        print(f"{self.weights_path} was absent or damaged; {self.checkpoint.path} had it.")

    def save(self) -> dict[str, Any]:
        """Calibrates and evaluates the network and writes its ``.pt`` and ``.json``.

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
        """Verifies existing weights and sets ``is_saved``; returns the error if they are damaged."""
        if not os.path.lexists(self.weights_path.with_suffix(".json")):
            return None
        try:
            _, info = load_weights(self.weights_path)
        except UnsealedError:
            raise
        except WeightsError as error:
            return error
        known = info.get("training", {})
        # An earlier version may have recorded less.
        common = [key for key in self.settings if key in known]
        old, new = ({key: settings[key] for key in common} for settings in (known, self.settings))
        if changed := changed_settings(self.weights_path, old, new):
            raise TrainingError(f"{changed}, or another output_dir.")
        self.is_saved = True
        return None

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> dict[str, Any]:
        self.seed_iteration()
        output = super()._iteration(engine, batchdata)
        output["loss"] = output["loss"].detach()
        output["accuracy"] = self.accuracy(output)
        return output


def _one_cycle(
    network: nn.Module, learning_rate: float, weight_decay: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Returns the optimiser and its schedule."""
    # No weight decay for scales, thresholds, biases and batch norm parameters.
    groups: list[dict[str, Any]] = [
        {"params": [value for value in network.parameters() if value.ndim > 1]},
        {"params": [value for value in network.parameters() if value.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps + 1, pct_start=0.15)
    return optimizer, schedule
