# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Training of the classifiers of real images: the walk's guides and, separately, the gate's networks."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import Tensor, nn
from torch.utils.data import Dataset

from bundle.data import ImageData
from bundle.metrics.agreement import quadratic_kappa
from bundle.metrics.recognition import highest_probability, predict, recognition_scores
from bundle.networks.classifiers import Classifier, GateClassifier, Guide, NobodyHead
from bundle.networks.imagenet_classifier import ImageNetClassifier
from bundle.networks.weights import read_info
from bundle.training.classifier_augment import (
    GATE_BLEND,
    augment_for_gate,
    augment_for_guide,
    blend_patients,
    mix_patients,
)
from bundle.training.errors import TrainingError
from bundle.training.info import weights_info
from bundle.training.init_from import initialise_classifier
from bundle.training.network_trainer import NetworkTrainer, TrainingTask, role_seed
from bundle.training.samplers import BalancedBatchSampler, BatchSampler, ShuffledBatchSampler
from bundle.training.strangers import stranger_divergence

__all__ = [
    "ROLES",
    "ClassBatch",
    "GuideTrainer",
    "IdentityBatch",
    "Role",
    "calibrate_head",
    "class_scores",
    "new_classifier",
    "new_guide_trainer",
]

# Calibration keeps a head's scale between 1 and this; at 1000, a cosine difference of 0.01 gives odds of e^10.
MOST_SCALE = 1000.0


@dataclass(frozen=True)
class Role:
    """Purpose of a classifier: what it predicts, what it trains on and how.

    Attributes:
        network: class of the network.
        identity: whether it classifies patients; otherwise it classifies diagnoses.
        splits: splits to train on. Identity networks include extra, because they must know every patient whose images
            the generator was trained on; the labels of extra images are not used.
        augment: augmentation of the training images [B, C, H, W].
        blend: largest share of another patient in an image of an identity network, see `blend_patients`.
        trunk: trunk of the `ImageNetClassifier` that replaces the network in modalities with ``pretrained``, if any.
    """

    network: type[Guide] | type[GateClassifier]
    identity: bool
    splits: tuple[str, ...]
    augment: Callable[[Tensor], Tensor]
    trunk: str = ""
    blend: float = 0.0


#: Role of each classifier, by the name of its weight file. The guides, which the walk differentiates, and the gate's
#: networks, which evaluate its result, differ in architecture, seed and augmentation.
ROLES: dict[str, Role] = {
    "identity_guide": Role(Guide, True, ("train", "extra"), augment_for_guide),
    "class_guide": Role(Guide, False, ("train",), augment_for_guide, "resnet18"),
    "gate_identity": Role(GateClassifier, True, ("train", "extra"), augment_for_gate, blend=GATE_BLEND),
    "gate_class": Role(GateClassifier, False, ("train",), augment_for_gate, "squeezenet1_1"),
}


def new_classifier(
    name: str,
    data: ImageData,
    seed: int,
    imagenet_file: str | os.PathLike[str] | None = None,
    init_from: str | os.PathLike[str] | None = None,
) -> Classifier:
    """Builds a classifier with random weights that depend on its name and the seed alone, or with trained weights.

    Args:
        name: one of `ROLES`.
        data: training images, which determine the channels and the number of classes (diagnoses or patients).
        seed: random seed shared by the set of classifiers; each derives its own from it.
        imagenet_file: ImageNet weights of the role's trunk, for modalities with ``pretrained``; None lets torchvision
            download them.
        init_from: folder of trained networks with one of this name, see `initialise_classifier`.

    Raises:
        TrainingError: the training images have fewer than two classes.
        TrunkUnavailable: the trunk's weights are unavailable.
        WeightsError: there are no such weights in init_from.
    """
    role = ROLES[name]
    num_classes = data.n_identities if role.identity else len(data.class_names)
    if num_classes < 2:
        what = "patients in train" if role.identity else "classes"
        raise TrainingError(f"{name} tells {what} apart and needs at least 2; the dataset has {num_classes}.")
    with torch.random.fork_rng():
        torch.manual_seed(role_seed(name, seed))
        network: Classifier
        if role.trunk and data.modality.pretrained:
            network = ImageNetClassifier(data.modality.channels, num_classes, role.trunk)
        else:
            network = role.network(data.modality.channels, num_classes, identity=role.identity)
    if init_from is not None:
        initialise_classifier(network, Path(init_from) / f"{name}.pt")
    elif isinstance(network, ImageNetClassifier):
        network.load_imagenet(imagenet_file)
    return network


@dataclass(frozen=True)
class IdentityBatch:
    """Makes a training batch of an identity classifier: augmented images of patients, followed by "nobody" images.

    Attributes:
        augment: augmentation of images [B, C, H, W].
        num_identities: K.
        nobody: number of "nobody" images (`mix_patients`) per image of a patient.
        blend: largest share of another patient in an image, see `blend_patients`.
    """

    augment: Callable[[Tensor], Tensor]
    num_identities: int
    nobody: float
    blend: float = 0.0

    def __call__(
        self, batch: dict[str, Any], device: torch.device, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Returns images [B + M, C, H, W] and target probabilities [B + M, K] on the device."""
        images = torch.as_tensor(batch["image"]).to(device, torch.float32, non_blocking=non_blocking)
        identities = torch.as_tensor(batch["identity"]).to(device, torch.int64, non_blocking=non_blocking)
        images = self.augment(blend_patients(images, self.blend) if self.blend else images)
        wanted = F.one_hot(identities, self.num_identities).float()
        mixed, shared = mix_patients(images, identities, self.num_identities)
        count = round(self.nobody * len(images))
        return torch.cat([images, mixed[:count]]), torch.cat([wanted, shared[:count]])


@dataclass(frozen=True)
class ClassBatch:
    """Makes a training batch of a diagnosis classifier: augmented images.

    Attributes:
        augment: augmentation of images [B, C, H, W].
        num_classes: K.
    """

    augment: Callable[[Tensor], Tensor]
    num_classes: int

    def __call__(
        self, batch: dict[str, Any], device: torch.device, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Returns images [B, C, H, W] and target probabilities [B, K] on the device."""
        images = torch.as_tensor(batch["image"]).to(device, torch.float32, non_blocking=non_blocking)
        labels = torch.as_tensor(batch["label"]).to(device, torch.int64, non_blocking=non_blocking)
        return self.augment(images), F.one_hot(labels, self.num_classes).float()


class GuideTrainer(NetworkTrainer):
    """Trains one classifier, evaluates it on all splits and writes its weights.

    Args:
        name: one of `ROLES`, the name of the weight file.
        data: data set; its val split calibrates, its test split is only measured.
        dataset: images of the role's splits, as returned by `ImageData.dataset`.
        network: network to train, in place.
        output_dir: folder that receives the weights, see `NetworkTrainer`.
        device: device to train on.
        batch_size: images of patients per batch.
        nobody: number of "nobody" images per image of a patient in an identity classifier's batch.
        seed: random seed shared by the set of classifiers; each derives its own from it.
        init_from: folder of trained networks from which the network was initialised, if any.
        **options: further arguments of `NetworkTrainer`, at least max_epochs.

    Raises:
        TrainingError: there are no training images, or the folder holds the weights of another training.
    """

    def __init__(
        self,
        name: str,
        data: ImageData,
        dataset: Dataset[Any],
        network: Classifier,
        output_dir: str | os.PathLike[str],
        device: torch.device | str,
        batch_size: int = 32,
        nobody: float = 0.5,
        seed: int = 0,
        init_from: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        role = ROLES[name]
        own_seed = role_seed(name, seed)
        images = data.records(role.splits)
        sampler: BatchSampler
        prepare: IdentityBatch | ClassBatch
        if role.identity:
            sampler = ShuffledBatchSampler(len(images), batch_size, own_seed)
            prepare = IdentityBatch(role.augment, network.num_classes, nobody, role.blend)
        else:
            sampler = BalancedBatchSampler([record.label or 0 for record in images], batch_size, own_seed)
            prepare = ClassBatch(role.augment, network.num_classes)
        settings = {
            "nobody": nobody if role.identity else None,
            "batch_size": batch_size,
            "init_from_sha256": None if init_from is None else read_info(Path(init_from) / f"{name}.pt")["sha256"],
        }
        task = TrainingTask(
            network, dataset, sampler, prepare, nn.CrossEntropyLoss(), weights_info(data, seed), settings
        )
        super().__init__(name, task, output_dir, device, seed=seed, **options)
        self.data = data
        self.classifier = network

    def measure(self) -> dict[str, Any]:
        """Returns the scores of `recognition_scores` or `class_scores`; an identity head is calibrated first."""
        known, labels, identities = self.data.tensors(ROLES[self.name].splits)
        images = {split: self.data.tensors(split)[:2] for split in ("val", "test")}
        if ROLES[self.name].identity:
            with torch.random.fork_rng():
                torch.manual_seed(self.own_seed)
                changed = ROLES[self.name].augment(known)
            calibration = calibrate_head(self.classifier, changed, identities, images["val"][0])
            scores = recognition_scores(self.network, known, identities, images["val"][0], images["test"][0])
            scores["calibration"] = calibration
            scores["stranger_divergence"] = stranger_divergence(
                self.classifier, images["val"][0], self.data.modality.stranger_quantile
            )
        else:
            sets = {"train": (known, labels), **images}
            ordered = self.data.modality.ordered
            scores = {split: class_scores(self.network, *part, ordered) for split, part in sets.items() if len(part[0])}
        return {"scores": scores}

    def accuracy(self, output: dict[str, Any]) -> float:
        """Returns the share of correctly classified images, "nobody" images excluded."""
        predicted, wanted = output["pred"][: self.batch_size], output["label"][: self.batch_size]
        return float((predicted.argmax(dim=1) == wanted.argmax(dim=1)).float().mean())


def new_guide_trainer(
    name: str,
    dataset: Dataset[Any],
    max_epochs: int,
    learning_rate: float,
    options: Mapping[str, Any],
    imagenet_file: str | os.PathLike[str] | None = None,
) -> GuideTrainer:
    """Builds a classifier and its trainer.

    Args:
        name: one of `ROLES`.
        dataset: images of the role's splits, as returned by `ImageData.dataset`.
        max_epochs: passes over the dataset.
        learning_rate: see `NetworkTrainer`.
        options: arguments of `GuideTrainer` that all classifiers of a set share, at least ``data`` and ``seed``.
        imagenet_file: see `new_classifier`.

    Raises:
        TrainingError: see `new_classifier` and `GuideTrainer`.
        TrunkUnavailable: see `new_classifier`.
    """
    network = new_classifier(name, options["data"], options["seed"], imagenet_file, options.get("init_from"))
    return GuideTrainer(
        name, dataset=dataset, network=network, max_epochs=max_epochs, learning_rate=learning_rate, **options
    )


def calibrate_head(network: Classifier, known: Tensor, identities: Tensor, nobody: Tensor) -> dict[str, Any]:
    r"""Calibrates the confidence of an identity classifier without changing its predicted identities.

    Fits the two scalars of a `NobodyHead`, its scale and its "nobody" cosine, to the sum of two means: the
    cross-entropy on augmented training images, and that with the uniform distribution (the walk's identity term) on
    held-out images. This is the temperature scaling of Guo et al. (ICML 2017) with an additional class "nobody".

    Args:
        network: identity classifier in evaluation mode; its head is changed in place.
        known: augmented training images [N, C, H, W] in [-1, 1].
        identities: identity of each training image, [N].
        nobody: held-out val images [M, C, H, W] in [-1, 1].

    Returns:
        The two scalars, and the loss before and after.

    Raises:
        TypeError: the network is not an identity classifier.
    """
    head = network.head
    if not isinstance(head, NobodyHead):
        raise TypeError("Only an identity classifier, which has a NobodyHead, is calibrated for nobody.")
    cosines = [predict(_Cosines(network), images, bf16=False) for images in (known, nobody)]
    num_classes = head.weight.shape[0]
    # Both scalars are bounded: if all images are dissimilar, an unbounded fit diverges to infinity.
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
    """The cosines between an image's feature and the prototypes of all identities, [B, K]."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        head = self.network.head
        assert isinstance(head, NobodyHead)
        return head.cosine(self.network.features(image))


def class_scores(network: nn.Module, images: Tensor, labels: Tensor, ordered: bool = False) -> dict[str, float]:
    """Evaluates a diagnosis classifier.

    Args:
        network: classifier from images in [-1, 1] to logits [N, K].
        images: [N, C, H, W] in [-1, 1].
        labels: class of each image, [N].
        ordered: whether the classes are ordered grades.

    Returns:
        Accuracy, balanced accuracy and mean highest probability; for ordered classes also quadratic weighted kappa; if
        every class occurs, AUC (for more than two classes the one-vs-rest mean).
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
    if ordered:
        scores["kappa"] = quadratic_kappa(truth, predicted.numpy(), num_classes)
    if len(labels.unique()) == num_classes:
        probabilities = logits.double().softmax(dim=1).numpy()
        scores["auc"] = float(
            roc_auc_score(truth, probabilities[:, 1])
            if num_classes == 2
            else roc_auc_score(truth, probabilities, multi_class="ovr")
        )
    return scores
