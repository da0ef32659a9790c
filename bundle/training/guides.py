# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Training of the classifiers of real images: the walk's guides and, apart from them, the gate's networks."""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler
from monai.inferers import Inferer, SimpleInferer
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from bundle.data import ImageData
from bundle.metrics.recognition import highest_probability, predict, recognition_scores
from bundle.networks.guides import GateClassifier, Guide, NobodyHead
from bundle.networks.weights import load_weights, save_weights
from bundle.training.classifier_augment import augment_for_gate, augment_for_guide, mix_patients
from bundle.training.handlers import TrainingCheckpoint
from bundle.training.info import weights_info
from bundle.training.seeds import stream_seed
from bundle.training.stylegan2_trainer import BalancedBatchSampler

__all__ = [
    "ROLES",
    "AutocastInferer",
    "ClassBatch",
    "GuideError",
    "GuideProgress",
    "GuideTrainer",
    "IdentityBatch",
    "Role",
    "ShuffledBatchSampler",
    "calibrate_head",
    "class_scores",
    "new_classifier",
]

# Calibration keeps a head's scale between 1 and this: at a cosine that differs by 0.01, the odds are e^10.
MOST_SCALE = 1000.0
# Streams of random numbers that each epoch and each iteration have of their own.
ORDER, STEP = 0, 1


class GuideError(ValueError):
    """A guide that cannot be trained as asked; the message tells the cure."""


@dataclass(frozen=True)
class Role:
    """What a classifier is for.

    Attributes:
        network: its class.
        identity: whether it tells patients apart, or diagnoses.
        splits: what it trains on. Extra images are for what must know everybody whom G saw; their labels are not used.
        augment: changes its training images [B, C, H, W].
    """

    network: type[Guide] | type[GateClassifier]
    identity: bool
    splits: tuple[str, ...]
    augment: Callable[[Tensor], Tensor]


#: Every classifier by the name of its weight file. What the walk differentiates and what decides over its result
#: differ in architecture, seed and augmentation.
ROLES: dict[str, Role] = {
    "identity_guide": Role(Guide, True, ("train", "extra"), augment_for_guide),
    "class_guide": Role(Guide, False, ("train",), augment_for_guide),
    "gate_identity": Role(GateClassifier, True, ("train", "extra"), augment_for_gate),
    "gate_class": Role(GateClassifier, False, ("train",), augment_for_gate),
}


def role_seed(name: str, seed: int) -> int:
    """Returns the seed of one classifier's training, below 2^31: another one for every name."""
    return int.from_bytes(hashlib.sha256(f"{name} {seed}".encode()).digest()[:4], "big") >> 1


def new_classifier(name: str, data: ImageData, seed: int) -> Guide | GateClassifier:
    """Builds a classifier with random weights that depend on its name and the seed alone.

    Args:
        name: one of `ROLES`.
        data: gives the channels and the number of classes: diagnoses, or patients in train and extra.
        seed: of the whole set of classifiers.

    Raises:
        GuideError: the training images show fewer than two classes.
    """
    role = ROLES[name]
    num_classes = data.n_identities if role.identity else len(data.class_names)
    if num_classes < 2:
        what = "patients in train" if role.identity else "classes"
        raise GuideError(f"{name} tells {what} apart and needs at least 2; the dataset has {num_classes}.")
    with torch.random.fork_rng():
        torch.manual_seed(role_seed(name, seed))
        return role.network(data.modality.channels, num_classes, identity=role.identity)


class AutocastInferer(SimpleInferer):
    """Calls the network under bf16 autocast, on images in channels_last: fast on CPUs that know bf16, and on GPUs."""

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Maps images [B, C, H, W] to the network's output in fp32."""
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16):
            return network(inputs.contiguous(memory_format=torch.channels_last), *args, **kwargs).float()


class ShuffledBatchSampler(Sampler[list[int]]):
    """Endless batches of full size, every image once in an epoch, that depend on the seed and their number alone.

    Args:
        n_images: images in the dataset.
        batch_size: images in a batch; at most ``n_images`` are taken.
        seed: of the order.

    Attributes:
        start: number of the first batch, from 0: a resumed run sets it.

    Raises:
        GuideError: there are no images.
    """

    def __init__(self, n_images: int, batch_size: int, seed: int) -> None:
        if n_images < 1:
            raise GuideError("There is no image to train on. Check the train split of the dataset.")
        self.n_images = n_images
        self.batch_size = min(batch_size, n_images)
        self.seed = seed
        self.start = 0

    def __len__(self) -> int:
        """Number of batches in an epoch; the images left over come in another epoch."""
        return self.n_images // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        number = self.start
        while True:
            epoch, batch = divmod(number, len(self))
            random = torch.Generator().manual_seed(stream_seed(self.seed, ORDER, epoch))
            order = torch.randperm(self.n_images, generator=random)
            yield order[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()
            number += 1


@dataclass(frozen=True)
class IdentityBatch:
    """Makes a training batch of an identity classifier: changed images of somebody, then images of nobody.

    Attributes:
        augment: changes images [B, C, H, W].
        num_identities: K.
        nobody: images of nobody (`mix_patients`) per image of somebody.
    """

    augment: Callable[[Tensor], Tensor]
    num_identities: int
    nobody: float

    def __call__(
        self, batch: dict[str, Any], device: torch.device, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Returns images [B + M, C, H, W] and wanted probabilities [B + M, K] on the device."""
        images = torch.as_tensor(batch["image"]).to(device, torch.float32, non_blocking=non_blocking)
        identities = torch.as_tensor(batch["identity"]).to(device, torch.int64, non_blocking=non_blocking)
        images = self.augment(images)
        wanted = F.one_hot(identities, self.num_identities).float()
        mixed, shared = mix_patients(images, identities, self.num_identities)
        count = round(self.nobody * len(images))
        return torch.cat([images, mixed[:count]]), torch.cat([wanted, shared[:count]])


@dataclass(frozen=True)
class ClassBatch:
    """Makes a training batch of a classifier of diagnoses: changed images.

    Attributes:
        augment: changes images [B, C, H, W].
        num_classes: K.
    """

    augment: Callable[[Tensor], Tensor]
    num_classes: int

    def __call__(
        self, batch: dict[str, Any], device: torch.device, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Returns images [B, C, H, W] and wanted probabilities [B, K] on the device."""
        images = torch.as_tensor(batch["image"]).to(device, torch.float32, non_blocking=non_blocking)
        labels = torch.as_tensor(batch["label"]).to(device, torch.int64, non_blocking=non_blocking)
        return self.augment(images), F.one_hot(labels, self.num_classes).float()


class GuideProgress:
    """Progress bar over a classifier's images: images/s, time left, loss and accuracy on changed training images."""

    def __init__(self, name: str) -> None:
        self.name = name

    def attach(self, engine: Engine) -> None:
        """Registers the events that open, advance and close the bar."""
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.COMPLETED, lambda: self._bar.close())

    def _open(self, engine: GuideTrainer) -> None:
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

    def _advance(self, engine: GuideTrainer) -> None:
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

    def _save(self, engine: GuideTrainer) -> None:
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


class GuideTrainer(SupervisedTrainer):
    """Trains one classifier, measures it on all splits and writes its weights.

    An iteration draws all its random numbers from a stream that its own number seeds: a run that goes on from its
    checkpoint is bit for bit the run that was never stopped. A finished classifier is checked and not trained again.

    Args:
        name: one of `ROLES`: the name of the weight file.
        data: val calibrates, test is only measured.
        dataset: what to train on: the splits of the role, as `ImageData.dataset` gives them.
        network: trained in place.
        output_dir: gets ``models/<name>.pt`` and ``.json``, and ``checkpoints/<name>.pt`` meanwhile.
        device: where to train.
        max_epochs: passes over the training images.
        batch_size: images of somebody in a batch.
        learning_rate: the highest of the one-cycle schedule (Smith and Topin, 2018).
        weight_decay: of AdamW.
        nobody: images of nobody per image of somebody in an identity classifier's batch.
        seed: of the whole set of classifiers; every one derives its own.
        checkpoint_epochs: epochs between two checkpoints.
        inferer: calls the network.
        train_handlers: further Ignite handlers.

    Raises:
        GuideError: there is nothing to train on, or the weights of another training are in the way.
    """

    def __init__(
        self,
        name: str,
        data: ImageData,
        dataset: Dataset[Any],
        network: Guide | GateClassifier,
        output_dir: str | os.PathLike[str],
        device: torch.device | str,
        max_epochs: int,
        batch_size: int = 32,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.05,
        nobody: float = 0.5,
        seed: int = 0,
        checkpoint_epochs: int = 5,
        inferer: Inferer | None = None,
        train_handlers: Sequence[Any] | None = None,
    ) -> None:
        role = ROLES[name]
        own_seed = role_seed(name, seed)
        images = data.records(role.splits)
        sampler: ShuffledBatchSampler | BalancedBatchSampler
        if role.identity:
            sampler = ShuffledBatchSampler(len(images), batch_size, own_seed)
        else:
            sampler = BalancedBatchSampler([record.label or 0 for record in images], batch_size, own_seed)
        epoch_length = max(1, len(images) // sampler.batch_size)
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
        prepare: IdentityBatch | ClassBatch
        if role.identity:
            prepare = IdentityBatch(role.augment, network.num_classes, nobody)
        else:
            prepare = ClassBatch(role.augment, network.num_classes)
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            train_data_loader=DataLoader(dataset, batch_sampler=sampler),
            epoch_length=epoch_length,
            network=network,
            optimizer=optimizer,
            loss_function=nn.CrossEntropyLoss(),
            prepare_batch=prepare,
            inferer=AutocastInferer() if inferer is None else inferer,
            train_handlers=[
                _SaveAtEnd(),
                LrScheduleHandler(cast(Any, self.scheduler), print_lr=False, epoch_level=False),
                *(train_handlers or []),
                GuideProgress(name),
            ],
            decollate=False,
            optim_set_to_none=True,
        )
        self.name = name
        self.data = data
        self.classifier = network
        self.sampler = sampler
        self.seed = seed
        self.own_seed = own_seed
        self.weights_path = Path(output_dir) / "models" / f"{name}.pt"
        self.settings: dict[str, Any] = {
            "max_epochs": max_epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "nobody": nobody if role.identity else None,
            "seed": seed,
            "resolution": data.resolution,
            "split_sha256": data.split_sha256,
        }
        self.checkpoint = TrainingCheckpoint(
            Path(output_dir) / "checkpoints" / f"{name}.pt",
            self.settings,
            {"trainer": self},
            interval=checkpoint_epochs * epoch_length,
        )
        self.is_saved = self._check_saved()
        if not self.is_saved:
            self.checkpoint.attach(self)

    @property
    def batch_size(self) -> int:
        """Images of somebody in a batch."""
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
        if not self.is_finished:  # Ignite would take a finished engine for a new one and start over
            super().run()
        if not self.is_saved:  # killed between its last checkpoint and its weights
            self.save()
        self.checkpoint.path.unlink(missing_ok=True)

    def training_state(self) -> dict[str, Any]:
        """All that a run needs to go on bit for bit; tensors and plain values only."""
        return {
            "iteration": self.state.iteration,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Takes over what `training_state` returned."""
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
        known, labels, identities = self.data.tensors(ROLES[self.name].splits)
        images = {split: self.data.tensors(split)[:2] for split in ("val", "test")}
        if ROLES[self.name].identity:
            with torch.random.fork_rng():
                torch.manual_seed(self.own_seed)
                changed = ROLES[self.name].augment(known)
            calibration = calibrate_head(self.classifier, changed, identities, images["val"][0])
            scores = recognition_scores(self.network, known, identities, images["val"][0], images["test"][0])
            scores["calibration"] = calibration
        else:
            sets = {"train": (known, labels), **images}
            scores = {split: class_scores(self.network, *part) for split, part in sets.items() if len(part[0])}
        info = {
            **weights_info(self.data, self.seed),
            "epochs": self.state.max_epochs,
            "training": self.settings,
            "scores": scores,
        }
        save_weights(self.network, self.weights_path, info)
        self.is_saved = True
        return scores

    def _check_saved(self) -> bool:
        if not self.weights_path.with_suffix(".json").exists():
            return False
        _, info = load_weights(self.weights_path)
        settings = info.get("training", {})
        for key, value in self.settings.items():
            if settings.get(key) != value:
                raise GuideError(
                    f"{self.weights_path} was trained with {key} = {settings.get(key)!r}, now it is {value!r}. "
                    "Give the old value, or another output_dir."
                )
        return True

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> dict[str, Any]:
        torch.manual_seed(stream_seed(self.own_seed, STEP, self.state.iteration))
        output = super()._iteration(engine, batchdata)
        predicted, wanted = output["pred"][: self.batch_size], output["label"][: self.batch_size]
        output["loss"] = output["loss"].detach()
        output["accuracy"] = float((predicted.argmax(dim=1) == wanted.argmax(dim=1)).float().mean())
        return output


def calibrate_head(
    network: Guide | GateClassifier, known: Tensor, identities: Tensor, nobody: Tensor
) -> dict[str, Any]:
    r"""Settles how sure an identity classifier is, without changing whom it takes an image for.

    Fits the two scalars of a `NobodyHead`, its scale and its cosine of nobody, to the sum of two means: cross-entropy
    on changed training images, and cross-entropy with the uniform distribution, which is the walk's identity term, on
    held-out images. It is the temperature scaling of Guo et al. (ICML 2017) with a class for nobody.

    Args:
        network: an identity classifier in evaluation mode; its head is changed in place.
        known: changed training images [N, C, H, W] in [-1, 1].
        identities: whose they are, [N].
        nobody: val images [M, C, H, W].

    Returns:
        The two scalars, and the loss before and after.

    Raises:
        TypeError: the network is no identity classifier.
    """
    head = network.head
    if not isinstance(head, NobodyHead):
        raise TypeError("Only an identity classifier, which has a NobodyHead, is calibrated for nobody.")
    cosines = [predict(_Cosines(network), images) for images in (known, nobody)]
    num_classes = head.weight.shape[0]
    # Both stay in a range that means something, however little the images say of them: where no image is alike any
    # other, an unbounded fit runs off to infinity.
    start = (head.scale.detach().cpu().double().log() / math.log(MOST_SCALE)).clamp(0.01, 0.99)
    raw_scale = start.logit().requires_grad_(True)
    raw_cosine = head.nobody.detach().cpu().double().clamp(-0.99, 0.99).atanh().requires_grad_(True)

    def scalars() -> tuple[Tensor, Tensor]:
        return (math.log(MOST_SCALE) * raw_scale.sigmoid()).exp(), raw_cosine.tanh()

    def loss() -> Tensor:
        scale, threshold = scalars()
        floor = scale * threshold - math.log(num_classes)
        somebody, stranger = (torch.logaddexp(scale * cosine.double(), floor) for cosine in cosines)
        return F.cross_entropy(somebody, identities) - stranger.log_softmax(dim=1).mean()

    def closure() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return float(value.detach())

    optimizer = torch.optim.LBFGS([raw_scale, raw_cosine], max_iter=100, line_search_fn="strong_wolfe")
    before = float(loss().detach())
    optimizer.step(closure)
    with torch.no_grad():
        scale, threshold = scalars()
        head.scale.copy_(scale)
        head.nobody.copy_(threshold)
    return {
        "scale": float(head.scale.detach()),
        "nobody_cosine": float(head.nobody.detach()),
        "loss_before": before,
        "loss_after": float(loss().detach()),
    }


class _Cosines(nn.Module):
    """The cosines between an image's feature and every identity's prototype, [B, K]."""

    def __init__(self, network: Guide | GateClassifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        head = self.network.head
        assert isinstance(head, NobodyHead)
        return head.cosine(self.network.features(image))


def class_scores(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Measures a classifier of diagnoses.

    Args:
        network: images in [-1, 1] to logits [N, K].
        images: [N, C, H, W].
        labels: [N].

    Returns:
        Accuracy, balanced accuracy, mean highest probability and, where every class is there, AUC (for more than two
        classes the mean over one against the rest).
    """
    logits = predict(network, images)
    predicted, truth = logits.argmax(dim=1), labels.numpy()
    scores = {
        "n": len(labels),
        "accuracy": float((predicted == labels).double().mean()),
        "balanced_accuracy": float(balanced_accuracy_score(truth, predicted.numpy())),
        "highest_probability": float(highest_probability(logits).mean()),
    }
    num_classes = logits.shape[1]
    if len(labels.unique()) == num_classes:
        probabilities = logits.double().softmax(dim=1).numpy()
        scores["auc"] = float(
            roc_auc_score(truth, probabilities[:, 1])
            if num_classes == 2
            else roc_auc_score(truth, probabilities, multi_class="ovr")
        )
    return scores
