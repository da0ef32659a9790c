# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Measures shortcut learning: how well labels can be predicted from image features that carry no anatomy.

Where the classes come from different scanners, a classifier may learn to recognise the scanner. The baseline is the
cross-validated AUC of classifiers that see only whole-image statistics: brightness, contrast, borders and sharpness.
The accuracy of a diagnostic classifier is meaningful only if it is well above this baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import adaptive_avg_pool2d
from torchvision.models import resnet18
from tqdm import tqdm

from bundle.data.dataset import ImageData, open_dataset
from bundle.data.layouts import DatasetDir
from bundle.data.modality import Modality
from bundle.data.transforms import fitting_preprocessings

__all__ = [
    "BaselineScore",
    "border_pixels",
    "measure_shortcut",
    "print_shortcut",
    "random_trunk_features",
    "shortcut_baseline",
    "whole_image_statistics",
]


def whole_image_statistics(images: torch.Tensor) -> NDArray[np.float64]:
    """Computes whole-image statistics that do not depend on the anatomy.

    Args:
        images: images [N, C, H, W] in [-1, 1]; channels are averaged.

    Returns:
        [N, 14]: mean; standard deviation; percentiles 1, 5, 25, 50, 75, 95 and 99; shares of black and of white pixels;
        mean of the border; mean of the border minus mean of the centre; sharpness. Black and white are the outer 2 % of
        the range; the border is the outer twelfth of each side, the centre the inner half of the height and the width;
        sharpness is the mean absolute difference of neighbouring pixels.
    """
    grey = images.mean(dim=1).double().numpy()
    side = max(1, min(grey.shape[1:]) // 12)
    border = np.ones(grey.shape[1:], bool)
    border[side:-side, side:-side] = False
    height, width = grey.shape[1:]
    centre = grey[:, height // 4 : -(height // 4), width // 4 : -(width // 4)].mean(axis=(1, 2))
    flat = grey.reshape(len(grey), -1)
    border_mean = grey[:, border].mean(axis=1)
    sharpness = (
        np.abs(np.diff(grey, axis=1)).mean(axis=(1, 2)) + np.abs(np.diff(grey, axis=2)).mean(axis=(1, 2))
    ) / 2.0
    return np.column_stack(
        [
            flat.mean(axis=1),
            flat.std(axis=1),
            *np.percentile(flat, (1, 5, 25, 50, 75, 95, 99), axis=1),
            (flat < -0.96).mean(axis=1),
            (flat > 0.96).mean(axis=1),
            border_mean,
            border_mean - centre,
            sharpness,
        ]
    )


def random_trunk_features(images: torch.Tensor, seed: int = 0) -> NDArray[np.float64]:
    """Computes features of a ResNet-18 with random weights, which encode texture and layout but nothing learned.

    Args:
        images: images [N, 1 or 3, H, W] in [-1, 1]; a single channel is repeated.
        seed: random seed of the weights.

    Returns:
        Features [N, 512].
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trunk = resnet18(weights=None).eval()
    trunk.fc = torch.nn.Identity()
    with torch.inference_mode():
        parts = [trunk(part.expand(-1, 3, -1, -1)) for part in images.split(64)]
    return torch.cat(parts).double().numpy()


def border_pixels(images: torch.Tensor) -> NDArray[np.float64]:
    """Returns the grey values of the border, where letters, film edges and bands lie, but hardly any lung or retina.

    Args:
        images: images [N, C, H, W] in [-1, 1]; channels are averaged.

    Returns:
        [N, 176]: the images reduced to 24 x 24 pixels, of which the outer two on each side are kept.
    """
    ring = torch.ones(24, 24, dtype=torch.bool)
    ring[2:-2, 2:-2] = False
    return adaptive_avg_pool2d(images.mean(dim=1, keepdim=True), 24)[:, 0, ring].double().numpy()


@dataclass(frozen=True)
class BaselineScore:
    """Cross-validated AUC of one kind of classifier, in [0, 1].

    Attributes:
        mean: mean over the seeds.
        spread: standard deviation over the seeds.
    """

    mean: float
    spread: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} +- {self.spread:.3f}"


_CLASSIFIERS: dict[str, Callable[[int], BaseEstimator]] = {
    "gradient boosting": lambda seed: GradientBoostingClassifier(random_state=seed),
    "logistic": lambda seed: make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
}


def shortcut_baseline(
    features: NDArray[np.float64],
    labels: Sequence[int],
    patients: Sequence[int],
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    folds: int = 5,
    classifiers: Sequence[str] = tuple(_CLASSIFIERS),
) -> dict[str, BaselineScore]:
    """Measures how well classifiers predict the labels from features that carry no anatomy.

    Args:
        features: features [N, F], for example those of :func:`whole_image_statistics`.
        labels: class of each row.
        patients: patient of each row; all rows of a patient are in the same fold.
        seeds: random seeds, one for each repetition of the cross-validation.
        folds: number of folds of the cross-validation.
        classifiers: names of the classifiers: "gradient boosting" and "logistic" (on standardised columns).

    Returns:
        For each classifier, the AUC of its out-of-fold predictions (one-vs-rest with macro average for more than two
        classes).
    """
    target = np.asarray(labels)
    scores: dict[str, list[float]] = {name: [] for name in classifiers}
    for seed in seeds:
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        parts = list(splitter.split(features, target, np.asarray(patients)))
        for name in classifiers:
            model: Any = _CLASSIFIERS[name](seed)
            predicted = np.zeros((len(target), len(np.unique(target))))
            for fit, judge in parts:
                predicted[judge] = model.fit(features[fit], target[fit]).predict_proba(features[judge])
            score = predicted[:, 1] if predicted.shape[1] == 2 else predicted
            scores[name].append(float(roc_auc_score(target, score, multi_class="ovr")))
    return {name: BaselineScore(float(np.mean(values)), float(np.std(values))) for name, values in scores.items()}


def measure_shortcut(
    data: ImageData, seeds: Sequence[int] = (0, 1, 2, 3, 4), progress: bool = False
) -> dict[str, dict[str, BaselineScore]]:
    """Computes :func:`shortcut_baseline` on the train split with each preprocessing that fits the modality's channels.

    Args:
        data: the data set, whose resolution is used.
        seeds: random seeds of the repetitions, see :func:`shortcut_baseline`; the first one also draws the weights of
            the random ResNet-18.
        progress: whether to show a progress bar.

    Returns:
        For each preprocessing, the scores by features and classifier: "statistics" (:func:`whole_image_statistics`) and
        "border" (:func:`border_pixels`) with "gradient boosting" and "logistic", and "random trunk, logistic".
    """
    records = data.records("train")
    labels = [int(record.label or 0) for record in records]
    patients = [data.identity(record) for record in records]
    result = {}
    names = fitting_preprocessings(data.modality.channels)
    for name in tqdm(names, "measuring", unit="preprocessing", disable=not progress):
        images = data.with_preprocessing(name).load(records)
        trunk = random_trunk_features(images, seeds[0])
        result[name] = {
            f"{seen}, {kind}": score
            for seen, features in (("statistics", whole_image_statistics(images)), ("border", border_pixels(images)))
            for kind, score in shortcut_baseline(features, labels, patients, seeds).items()
        }
        result[name]["random trunk, logistic"] = shortcut_baseline(
            trunk, labels, patients, seeds, classifiers=("logistic",)
        )["logistic"]
    return result


def print_shortcut(
    dataset_dir: DatasetDir,
    output_dir: str | Path,
    modality: str | Modality = "xray",
    resolution: int = 128,
    layout: str | Mapping[str, Any] = "auto",
    seed: int = 0,
    patient_pattern: str | None = None,
    drop_duplicates: bool | None = None,
) -> None:
    """Prints :func:`measure_shortcut` of a folder as a table, one line per preprocessing.

    Args:
        dataset_dir: path of the folder of images, or of several.
        output_dir: output folder; its subfolder ``private`` stores the split file.
        modality: preset of the kind of image; the line of its default preprocessing is marked.
        resolution: side of the images in pixels.
        layout: see :func:`bundle.data.layouts.read_folder`.
        seed: random seed of the splits, used where the data set defines none.
        patient_pattern: see :func:`bundle.data.open_dataset`.
        drop_duplicates: see :func:`bundle.data.open_dataset`.

    Raises:
        DataError: the data cannot be used.
    """
    data = open_dataset(dataset_dir, output_dir, modality, resolution, seed, layout, patient_pattern, drop_duplicates)
    table = measure_shortcut(data, progress=True)
    kinds = list(next(iter(table.values())))
    print(f"Cross-validated AUC on the {len(data.records('train'))} images of train at {resolution} px:")
    print(" | ".join(["preprocessing", *kinds]))
    for name, row in table.items():
        mark = " (default)" if name == data.modality.preprocessing else ""
        print(" | ".join([f"{name}{mark}", *(str(row[kind]) for kind in kinds)]))
