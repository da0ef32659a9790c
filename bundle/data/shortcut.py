# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""How much of a label can be read off an image without looking at the anatomy.

Where the classes come from different scanners, a classifier may learn the scanner. The measure: cross-validated AUC of
whole-image statistics, which know brightness, contrast, borders and sharpness but no organ. An accuracy means little
unless it is well above this baseline.
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
from torchvision.models import resnet18
from tqdm import tqdm

from bundle.data.dataset import ImageData, open_dataset
from bundle.data.layouts import DatasetDir
from bundle.data.modality import Modality
from bundle.data.transforms import fitting_preprocessings

__all__ = [
    "BaselineScore",
    "measure_shortcut",
    "print_shortcut",
    "random_trunk_features",
    "shortcut_baseline",
    "whole_image_statistics",
]


def whole_image_statistics(images: torch.Tensor) -> NDArray[np.float64]:
    """Describes each image by numbers that no anatomy is needed for.

    Args:
        images: [N, C, H, W] in [-1, 1]; colour is averaged.

    Returns:
        [N, 14]: mean; standard deviation; percentiles 1, 5, 25, 50, 75, 95 and 99; shares of black and of white; mean
        of the border; that less the mean of the centre; sharpness. Black and white are the outer 2 % of the range; the
        border is the outer twelfth of each side, the centre the inner half; sharpness is the mean absolute difference
        of neighbouring pixels.
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
    """Computes features of a ResNet-18 that was never trained: texture and layout, but nothing learned.

    Args:
        images: [N, 1 or 3, H, W] in [-1, 1]; grey is repeated.
        seed: of the weights.

    Returns:
        [N, 512].
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trunk = resnet18(weights=None).eval()
    trunk.fc = torch.nn.Identity()
    with torch.inference_mode():
        parts = [trunk(part.expand(-1, 3, -1, -1)) for part in images.split(64)]
    return torch.cat(parts).double().numpy()


@dataclass(frozen=True)
class BaselineScore:
    """Cross-validated AUC of one kind of classifier.

    Attributes:
        mean: over the seeds.
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
    """Measures how well features that see no anatomy tell the classes apart.

    Args:
        features: [N, F], for example of :func:`whole_image_statistics`.
        labels: class of each row.
        patients: group of each row; a patient is never in two folds.
        seeds: one repetition each, with its own folds.
        folds: of the cross-validation.
        classifiers: of "gradient boosting" and "logistic" (regression on standardised columns).

    Returns:
        For each classifier, AUC of the out-of-fold predictions (one against rest, macro average, for more than two
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
    """Measures the shortcut on the train split under each of :data:`bundle.data.transforms.PREPROCESSINGS` that fits.

    Args:
        data: the data set; its resolution is the one measured at.
        seeds: repetitions, see :func:`shortcut_baseline`; the random trunk has the first seed's weights.
        progress: whether to show a progress bar.

    Returns:
        By preprocessing, by baseline: "statistics, gradient boosting", "statistics, logistic" and "random trunk,
        logistic".
    """
    records = data.records("train")
    labels = [int(record.label or 0) for record in records]
    patients = [data.identity(record) for record in records]
    result = {}
    names = fitting_preprocessings(data.modality.channels)
    for name in tqdm(names, "measuring", unit="preprocessing", disable=not progress):
        images = data.with_preprocessing(name).load(records)
        statistics = shortcut_baseline(whole_image_statistics(images), labels, patients, seeds)
        trunk = shortcut_baseline(
            random_trunk_features(images, seeds[0]), labels, patients, seeds, classifiers=("logistic",)
        )
        result[name] = {f"statistics, {kind}": score for kind, score in statistics.items()}
        result[name]["random trunk, logistic"] = trunk["logistic"]
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
        dataset_dir: the folder of images, or several.
        output_dir: its folder ``private`` keeps the split file.
        modality: preset; the line of its own preprocessing is marked.
        resolution: side in pixels.
        layout: see :func:`bundle.data.layouts.read_folder`.
        seed: seed of the splits, where they have to be drawn.
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
