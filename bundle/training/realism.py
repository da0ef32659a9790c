# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Fits the judges of realism to the training images, in a minute and without gradients."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bundle.data import ImageData
from bundle.files import sweep_temporary
from bundle.networks.realism import RealismJudge
from bundle.networks.weights import WeightsError, load_weights, save_weights
from bundle.precision import full_fp32
from bundle.training.errors import TrainingError
from bundle.training.info import weights_info

__all__ = ["JUDGES", "REFUSED", "fit_realism"]

#: ImageNet network of each judge, by the name of its weight file. The walk's guide and the gate look at different
#: features, so that what guides a walk does not judge it.
JUDGES = {"realism_guide": "resnet18", "gate_realism": "efficientnet_lite1"}
#: Share of the training images whose nearest neighbour of the same class counts as a near-duplicate.
NEAR = 0.05
#: Share of the validation images, those farthest from the training images, that the threshold refuses. Images of a
#: generator are cheap, and ruined ones costly.
REFUSED = 0.25
# Largest number of principal components of a class.
MOST_COMPONENTS = 16


@torch.no_grad()
@full_fp32()
def fit_realism(
    data: ImageData,
    output_dir: str | os.PathLike[str],
    seed: int = 0,
    resnet18_file: str | os.PathLike[str] | None = None,
    efficientnet_file: str | os.PathLike[str] | None = None,
) -> None:
    """Fits the two `RealismJudge` of `JUDGES`, calibrates their thresholds and writes those that the folder lacks.

    Args:
        data: data set; labelled training images are fitted, val calibrates, test is only measured.
        output_dir: folder that receives ``models/realism_guide.pt`` and ``models/gate_realism.pt``.
        seed: seed of the set of networks, which the JSON file records; nothing here is random.
        resnet18_file: torchvision's weights of ResNet-18; None to download them.
        efficientnet_file: weights of EfficientNet-Lite1; None for those of the installed package.

    Raises:
        TrainingError: a class has too few training images, or there are no validation images.
        TrunkUnavailable: the weights cannot be read.
        WeightsError: the folder holds a judge that was fitted to other images.
    """
    info = weights_info(data, seed)
    for name, trunk in JUDGES.items():
        path = Path(output_dir) / "models" / f"{name}.pt"
        if path.exists():
            _check(path, info)
            print(f"{path} is complete and as it was written. Nothing to fit.")
            continue
        _fit(path, data, info, trunk, resnet18_file if trunk == "resnet18" else efficientnet_file)


def _fit(path: Path, data: ImageData, info: dict[str, Any], trunk: str, file: str | os.PathLike[str] | None) -> None:
    name = path.stem
    sides = {split: data.tensors(split)[:2] for split in ("train", "val", "test")}
    judge = RealismJudge(len(data.class_names), _components(name, data, sides["train"][1]), trunk=trunk)
    if not len(sides["val"][1]):
        raise TrainingError(f"{name} is calibrated on val images, and the val split is empty. Give the dataset some.")
    judge.load_imagenet(file)
    judge.eval()
    features = {split: judge.features(images) for split, (images, _) in sides.items() if len(images)}
    judge.fit(features["train"], sides["train"][1])
    distances = {split: _distances(judge, found, sides[split][1]) for split, found in features.items()}
    threshold = float(distances["val"].double().quantile(1.0 - REFUSED))
    scores = {
        "threshold": threshold,
        "apart": _apart(judge.standardised(features["train"]), sides["train"][1]),
        **{
            split: {"n": len(found), "refused": float((found > threshold).double().mean())}
            for split, found in distances.items()
        },
    }
    sweep_temporary(path.parent)
    save_weights(judge, path, {**info, "scores": scores})
    refused = f"those farther than {threshold:.3g} from real images, {REFUSED:.0%} of the validation images"
    print(f"{path} is fitted. It refuses {refused}.")


def _distances(judge: RealismJudge, features: Tensor, labels: Tensor) -> Tensor:
    found = torch.zeros(len(labels))
    for label in labels.unique().tolist():
        found[labels == label] = judge.distance(features[labels == label], label)
    return found


def _apart(features: Tensor, labels: Tensor) -> list[float]:
    """Returns for each class the `NEAR` quantile of the distances to the nearest other image of the class."""
    found = []
    for label in labels.unique().tolist():
        distances = torch.cdist(features[labels == label], features[labels == label]).fill_diagonal_(float("inf"))
        found.append(float(distances.amin(dim=1).double().quantile(NEAR)))
    return found


def _components(name: str, data: ImageData, labels: Tensor) -> int:
    """Returns the number of principal components: half the images of the smallest class, at most `MOST_COMPONENTS`."""
    counts = labels.bincount(minlength=len(data.class_names)).tolist()
    number, rarest = min(zip(counts, data.class_names, strict=True))
    if number < 2:
        raise TrainingError(f"{name} needs at least 2 training images of each class; {rarest} has {number}.")
    return int(min(MOST_COMPONENTS, number // 2))


def _check(path: Path, info: dict[str, object]) -> None:
    _, found = load_weights(path)
    differing = [key for key, value in info.items() if found.get(key) != value]
    if differing:
        raise WeightsError(
            f"{path} was fitted to other images ({', '.join(differing)} differ) and is not overwritten. Name another "
            "output_dir, or remove it."
        )
