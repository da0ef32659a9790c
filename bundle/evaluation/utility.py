# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Utility of images for training: classifiers that are trained on them alone and evaluated on real images."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from monai.data import DataLoader, Dataset, get_track_meta, set_track_meta
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.handlers import LrScheduleHandler
from monai.networks.nets import resnet18
from monai.transforms import Compose, RandAdjustContrastd, RandAffined, RandFlipd
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from bundle.auditing.measures import area_under_curve
from bundle.auditing.resampling import Estimate, estimate, mean
from bundle.data import Modality
from bundle.data.shortcut import random_trunk_features, whole_image_statistics
from bundle.figures import from_uint8
from bundle.metrics.agreement import quadratic_kappa
from bundle.metrics.recognition import predict
from bundle.networks.imagenet_classifier import ImageNetClassifier
from bundle.networks.standardise import resized, standardised
from bundle.training.gradients import require_finite_gradients
from bundle.training.network_trainer import AutocastInferer
from bundle.training.seeds import stream_seed

__all__ = [
    "ClassifierSettings",
    "accuracy_estimates",
    "classifier_settings",
    "classify",
    "fitted_shortcuts",
    "label_estimates",
    "shortcut_estimates",
    "train_classifier",
]

# Independent random streams of a training: initial weights, order of the images, augmentation, dropout.
WEIGHTS, ORDER, CHANGES, DROPOUT = range(4)

# Smaller images have a single pixel in the last stage of ResNet-18. There the bf16 gradient of a strided 3 x 3 kernel
# is uninitialised memory, sometimes NaN, on CPUs with AVX-512 (PyTorch 2.14, oneDNN 3).
LEAST_SIDE = 17


@dataclass(frozen=True)
class ClassifierSettings:
    """Training settings of a classifier, equal for all arms.

    Attributes:
        epochs: number of passes over the images.
        batch_size: number of images in a batch.
        learning_rate: peak learning rate of the one-cycle schedule of AdamW.
        weight_decay: weight decay of AdamW.
        side: largest side in pixels, to which larger images are downscaled; at least 17.
        rotation: largest rotation, in degrees.
        shift: largest translation, as a fraction of the side.
        scale: largest change of scale, as a fraction.
        gamma: largest exponent of the random gamma correction; the smallest is its inverse.
        pretrained: whether to fine-tune SqueezeNet 1.1 from ImageNet weights instead of training a ResNet-18.
    """

    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    side: int = 64
    rotation: float = 15.0
    shift: float = 0.1
    scale: float = 0.15
    gamma: float = 1.65
    pretrained: bool = False


def classifier_settings(modality: Modality, epochs: int) -> ClassifierSettings:
    """Returns settings with which a classifier can learn from the modality's real images.

    Args:
        modality: preset that determines whether classifiers start from ImageNet weights.
        epochs: number of passes over the images.
    """
    if not modality.pretrained:
        return ClassifierSettings(epochs)
    return ClassifierSettings(epochs, learning_rate=3e-4, side=128, pretrained=True)


def _inputs(pixels: Tensor, settings: ClassifierSettings) -> Tensor:
    images = from_uint8(pixels)
    images = resized(images, settings.side) if images.shape[-1] > settings.side else images
    return images if settings.pretrained else standardised(images)


def train_classifier(
    pixels: Tensor,
    labels: Tensor,
    num_classes: int,
    settings: ClassifierSettings,
    seed: int,
    device: str | torch.device = "cpu",
    squeezenet_file: str | os.PathLike[str] | None = None,
) -> nn.Module:
    """Trains a ResNet-18 (He et al., CVPR 2016) or an `ImageNetClassifier`, with data augmentation.

    The augmentation (flips, affine maps, gamma correction) is common practice for few images and compensates for
    synthetic images varying less in these respects than real ones.

    Args:
        pixels: training images, uint8 [N, H, W] or [N, H, W, 3].
        labels: labels [N].
        num_classes: number of classes.
        settings: training settings.
        seed: seed of initial weights, order of the images, augmentation and dropout.
        device: device of the training.
        squeezenet_file: file of the SqueezeNet 1.1 weights, if the settings need it; None for those of torchvision.

    Returns:
        The network for `classify`, which maps images [B, C, H, W] to logits [B, num_classes], in evaluation mode.

    Raises:
        ValueError: a class has no image, or images are smaller than 17 pixels.
        DivergedError: a gradient is not finite.
        TrunkUnavailable: the SqueezeNet weights are not available.
    """
    absent = sorted(set(range(num_classes)) - set(labels.tolist()))
    if absent:
        raise ValueError(f"A classifier cannot learn class {absent[0]}: none of the {len(labels)} images shows it.")
    images = _inputs(pixels, settings)
    if images.shape[-1] < LEAST_SIDE:
        raise ValueError(
            f"Images of {images.shape[-1]} pixels are too small for a classifier: use {LEAST_SIDE} or more."
        )
    loader = _loader(images, labels, settings, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, WEIGHTS))
        network = _network(images.shape[1], num_classes, settings.pretrained, squeezenet_file)
    network = network.to(memory_format=torch.channels_last).to(device)
    trainer = _trainer(network, loader, settings, torch.device(device))
    with _no_metadata(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(stream_seed(seed, DROPOUT))
        trainer.run()
    return network.eval()


def _loader(images: Tensor, labels: Tensor, settings: ClassifierSettings, seed: int) -> DataLoader:
    items = [{"image": image, "label": int(label)} for image, label in zip(images, labels, strict=True)]
    return DataLoader(
        Dataset(items, _changes(settings, images.shape[-1]).set_random_state(stream_seed(seed, CHANGES))),
        batch_size=min(settings.batch_size, len(items)),
        shuffle=True,
        drop_last=True,
        generator=torch.Generator().manual_seed(stream_seed(seed, ORDER)),
    )


def _trainer(
    network: nn.Module, loader: DataLoader, settings: ClassifierSettings, device: torch.device
) -> SupervisedTrainer:
    options: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    optimizer = torch.optim.AdamW(network.parameters(), **options, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.epochs * len(loader) + 1, pct_start=0.15
    )
    trainer = SupervisedTrainer(
        device=device,
        max_epochs=settings.epochs,
        train_data_loader=loader,
        network=network,
        optimizer=optimizer,
        loss_function=nn.CrossEntropyLoss(),
        inferer=AutocastInferer(),
        train_handlers=[LrScheduleHandler(cast(Any, schedule), print_lr=False, epoch_level=False)],
        decollate=False,
        optim_set_to_none=True,
    )
    trainer.add_event_handler(
        IterationEvents.BACKWARD_COMPLETED,
        lambda engine: require_finite_gradients(engine.network, "the classifier", engine.state.iteration),
    )
    trainer.logger.setLevel("WARNING")  # MONAI would log every epoch of dozens of trainings
    return trainer


def _network(
    channels: int, num_classes: int, pretrained: bool, squeezenet_file: str | os.PathLike[str] | None
) -> nn.Module:
    if pretrained:
        network = ImageNetClassifier(channels, num_classes, "squeezenet1_1")
        network.load_imagenet(squeezenet_file)
        return network
    # MONAI's default stem has stride 1, which would take four times as long.
    return resnet18(
        spatial_dims=2, n_input_channels=channels, num_classes=num_classes, conv1_t_size=7, conv1_t_stride=2
    )


def _changes(settings: ClassifierSettings, side: int) -> Compose:
    affine = RandAffined(
        "image",
        prob=1.0,
        rotate_range=math.radians(settings.rotation),
        translate_range=settings.shift * side,
        scale_range=settings.scale,
        padding_mode="border",
        spatial_size=(side, side),
        cache_grid=True,
    )
    gamma = RandAdjustContrastd("image", prob=1.0, gamma=(1.0 / settings.gamma, settings.gamma))
    return Compose([RandFlipd("image", prob=0.5, spatial_axis=1), affine, gamma])


@contextmanager
def _no_metadata() -> Iterator[None]:
    """Lets MONAI's transforms return plain tensors, since recording a transform takes longer than the transform."""
    tracked = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(tracked)


def classify(network: nn.Module, pixels: Tensor, settings: ClassifierSettings) -> Tensor:
    """Returns the logits [N, K], float32 on the CPU, of uint8 pixels."""
    return predict(network, _inputs(pixels, settings))


def accuracy_estimates(
    logits: Tensor, labels: Tensor, draws: list[NDArray[np.int64]], ordered: bool = False, prefix: str = ""
) -> dict[str, Estimate]:
    """Estimates the accuracy of predictions, with intervals from bootstrap draws of patients.

    Args:
        logits: logits or log-probabilities [N, K].
        labels: labels [N].
        draws: bootstrap draws of patients, as indices into the images.
        ordered: whether the classes are ordinal grades.
        prefix: prefix of the names.

    Returns:
        ``accuracy``, ``balanced_accuracy`` and ``auc`` (one-vs-rest, mean over the classes); for grades also ``kappa``,
        quadratically weighted.
    """
    scores = torch.as_tensor(logits).double()
    classes = range(scores.shape[1])

    def of(index: NDArray[np.int64] | slice) -> tuple[float, ...]:
        truth, given = labels[index], scores[index]
        named = given.argmax(dim=1)
        right = (named == truth).double()
        members = [truth == value for value in classes]
        balanced = float(np.mean([mean(right[mine]) for mine in members if mine.any()]))
        kappa = (quadratic_kappa(truth, named, len(classes)),) if ordered else ()
        if not all(mine.any() for mine in members):
            return mean(right), balanced, np.nan, *kappa
        odds = given - torch.stack([_others(given, value) for value in classes], dim=1)
        areas = [area_under_curve(odds[mine, value], odds[~mine, value]) for value, mine in enumerate(members)]
        return mean(right), balanced, float(np.mean(areas)), *kappa

    values = of(slice(None))
    replicates = np.array([of(draw) for draw in draws]).T
    names = ("accuracy", "balanced_accuracy", "auc", "kappa")[: len(values)]
    missing = len(classes) - len(labels.unique())
    reasons = {
        "auc": f"{missing} of the classes have no test image",
        "kappa": "all images are of one grade, and named so",
    }
    figures = {}
    for name, value, drawn in zip(names, values, replicates, strict=True):
        if np.isnan(value):
            figures[prefix + name] = Estimate(n=len(labels), reason=reasons[name])
        else:
            figures[prefix + name] = estimate(value, np.where(np.isnan(drawn), value, drawn), len(labels))
    return figures


def _others(logits: Tensor, value: int) -> Tensor:
    """Returns the log-sum-exp [N] of the logits of all classes but one."""
    return logits[:, [other for other in range(logits.shape[1]) if other != value]].logsumexp(dim=1)


def label_estimates(
    logits: Tensor, labels: Tensor, draws: list[NDArray[np.int64]], ordered: bool = False
) -> dict[str, Estimate]:
    """Estimates how well a classifier of real images predicts the labels of synthetic ones (GAN-test).

    See Shmelkov et al., "How good is my GAN?", ECCV 2018, section 3.

    Args:
        logits: logits [N, K] of the classifier that was trained on real images.
        labels: labels [N] of the images.
        draws: bootstrap draws of patients or paths, as indices into the images.
        ordered: whether the classes are ordinal grades.

    Returns:
        The estimates of `accuracy_estimates` with the prefix ``label_``; for grades also ``grade_rise``, the smallest
        rise of the mean expected grade from a label to the next higher one. Below 0, the labels are not in order.
    """
    figures = accuracy_estimates(logits, labels, draws, ordered, "label_")
    if ordered:
        probabilities = logits.double().softmax(dim=1)
        expected = probabilities @ torch.arange(probabilities.shape[1], dtype=torch.float64)

        def rise(index: NDArray[np.int64] | slice) -> float:
            grades, truth = expected[index], labels[index]
            means = torch.stack([grades[truth == value].mean() for value in range(probabilities.shape[1])])
            return float(means.diff().min())  # NaN if a draw lacks a grade

        value, replicates = rise(slice(None)), np.array([rise(draw) for draw in draws])
        lacks = Estimate(n=len(labels), reason="some grades have no image")
        figures["grade_rise"] = lacks if np.isnan(value) else estimate(value, replicates, len(labels))
    return figures


def fitted_shortcuts(pixels: Tensor, labels: Tensor, seed: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Fits shortcut classifiers, which use no anatomy but whole-image properties.

    Args:
        pixels: training images, uint8 [N, H, W] or [N, H, W, 3].
        labels: labels [N] of the training images.
        seed: seed of the classifiers and of the random trunk.

    Returns:
        Functions from images like the training images to log-probabilities [M, K]: ``statistics_`` is gradient boosting
        on 14 statistics of the whole image, ``random_trunk_`` logistic regression on features of an untrained network.
    """
    models: dict[str, tuple[Callable[[Tensor], NDArray[np.float64]], Any]] = {
        "statistics_": (whole_image_statistics, GradientBoostingClassifier(random_state=seed)),
        "random_trunk_": (
            lambda images: random_trunk_features(images, seed),
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        ),
    }

    def fitted(features: Callable[[Tensor], NDArray[np.float64]], model: Any) -> Callable[[Tensor], Tensor]:
        model.fit(features(from_uint8(pixels)), labels.numpy())
        return lambda images: torch.from_numpy(model.predict_proba(features(from_uint8(images))).clip(1e-9)).log()

    return {prefix: fitted(features, model) for prefix, (features, model) in models.items()}


def shortcut_estimates(
    shortcuts: Mapping[str, Callable[[Tensor], Tensor]],
    test_pixels: Tensor,
    test_labels: Tensor,
    draws: list[NDArray[np.int64]],
    ordered: bool = False,
) -> dict[str, Estimate]:
    """Estimates the accuracy of shortcut classifiers.

    Args:
        shortcuts: classifiers from `fitted_shortcuts`.
        test_pixels: test images, uint8 [M, H, W] or [M, H, W, 3].
        test_labels: labels [M] of the test images.
        draws: bootstrap draws of patients, as indices into the test images.
        ordered: whether the classes are ordinal grades.

    Returns:
        The estimates of `accuracy_estimates`, with the classifiers' names as prefixes.
    """
    figures = {}
    for prefix, classifier in shortcuts.items():
        figures.update(accuracy_estimates(classifier(test_pixels), test_labels, draws, ordered, prefix))
    return figures
