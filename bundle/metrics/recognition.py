# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Measures how well an identity classifier recognises its training patients and rejects images of other people."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from bundle.metrics import changes
from bundle.precision import bf16_autocast, full_fp32

__all__ = [
    "PERCENTILE",
    "UNSEEN_CHANGES",
    "divergence_from_uniform",
    "highest_probability",
    "predict",
    "recognition_scores",
    "recognition_threshold",
]

#: Percentile of the validation images' highest probabilities that is the gate's threshold.
PERCENTILE = 95.0


#: Alterations that are not part of the guides' training augmentation: other kinds of alteration, and the same kinds
#: with greater strength ("beyond"). Each maps images [N, C, H, W] in [-1, 1] to the same shape, deterministically;
#: clamp the result to [-1, 1].
UNSEEN_CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "JPEG, quality 20": lambda images: changes.jpeg(images, 20),
    "gamma 0.6": lambda images: changes.gamma(images, 0.6),
    "gamma 1.7": lambda images: changes.gamma(images, 1.7),
    "Gaussian blur, 1.5 % of the side": lambda images: changes.blur(images, 0.015),
    "Gaussian blur, 2.5 % of the side": lambda images: changes.blur(images, 0.025),
    "occlusion, black square of 20 %": lambda images: changes.occlude(images, 0.20),
    "shear 0.2": lambda images: changes.affine(images, [[1.0, 0.2, 0.0], [0.0, 1.0, 0.0]]),
    "perspective 12 %": lambda images: changes.perspective(images, 0.12),
    "elastic waves, 3 % of the side": lambda images: changes.elastic(images, 0.03),
    "posterised to 8 levels": lambda images: changes.posterise(images, 8),
    "rotation by 20 degrees (beyond)": lambda images: changes.rotate(images, 20.0),
    "shift by 13 % (beyond)": lambda images: changes.shift(images, 0.13, 0.13),
    "enlarged by 1.35 (beyond)": lambda images: changes.resize(images, 1.35),
    "reduced by 0.75 (beyond)": lambda images: changes.resize(images, 0.75),
    "noise of 0.15 (beyond)": lambda images: changes.noise(images, 0.15),
    "contrast by 0.5 (beyond)": lambda images: changes.contrast(images, 0.5),
    "brightness by 0.5 (beyond)": lambda images: images + 0.5,
}


@torch.no_grad()
@full_fp32()
def predict(network: nn.Module, images: Tensor, batch_size: int = 64, bf16: bool = True) -> Tensor:
    """Evaluates a network on images, batch by batch; its training or evaluation mode is not changed.

    Args:
        network: network that maps images to logits.
        images: images [N, C, H, W] in [-1, 1].
        batch_size: number of images processed at a time.
        bf16: whether to compute in bf16 on devices that support it; False for fp32.

    Returns:
        Logits [N, K], float32, on the CPU.

    Raises:
        ValueError: there are no images.
    """
    device = next(network.parameters()).device
    if len(images) == 0:
        raise ValueError("There are no images to predict. Check the split of the dataset.")
    logits = []
    for batch in images.split(batch_size):
        with bf16_autocast(device, bf16):
            logits.append(network(batch.to(device).contiguous(memory_format=torch.channels_last)).float().cpu())
    return torch.cat(logits)


def highest_probability(logits: Tensor) -> Tensor:
    """Returns the highest softmax probability [N] of logits [N, K]: the classifier's confidence in any identity."""
    return logits.softmax(dim=1).amax(dim=1)


def divergence_from_uniform(logits: Tensor) -> Tensor:
    """Returns KL(uniform || softmax), in nats, [...], of logits [..., K]: 0 where all identities are equally likely."""
    return -math.log(logits.shape[-1]) - logits.float().log_softmax(dim=-1).mean(dim=-1)


def recognition_threshold(logits: Tensor) -> float:
    """Calibrates the highest probability above which the gate counts an image as a recognised patient.

    Args:
        logits: logits [N, K] of the validation images, whose patients neither the classifier nor G has seen.

    Returns:
        The percentile `PERCENTILE` of the highest probabilities, linearly interpolated.

    Raises:
        ValueError: there are no images.
    """
    if len(logits) == 0:
        raise ValueError(
            "The gate's threshold is calibrated on val images, and the val split is empty. Give the dataset val images."
        )
    return float(highest_probability(logits).double().quantile(PERCENTILE / 100.0))


def recognition_scores(
    network: nn.Module, known: Tensor, identities: Tensor, val: Tensor, test: Tensor | None = None
) -> dict[str, Any]:
    """Measures an identity classifier on training images, original and altered, and on images of other people.

    All logits are computed in fp32, as in the gate, which applies the threshold.

    Args:
        network: classifier that maps images in [-1, 1] to logits [N, K], in evaluation mode.
        known: training images [N, C, H, W] in [-1, 1].
        identities: class indices [N] of the patients of the training images.
        val: validation images, of people that the classifier was not trained on; they calibrate the threshold.
        test: test images, of further such people; if None or empty, their measures are omitted.

    Returns:
        Top-1 accuracies on training images (original, under each of `UNSEEN_CHANGES`, and the mean of these), the mean
        highest probability and the mean identity divergence (KL from the uniform distribution, in nats) of each set,
        the threshold, the share of images above it, which a gate with this network stops (``sensitivity`` on original
        and altered training images, ``sensitivity_unseen`` under each alteration, ``false_alarms`` on test images), and
        the AUROC of the highest probability between training images and test
        images, or validation images if there are no test images.
    """
    ask = partial(predict, network, bf16=False)
    logits = ask(known)
    changed = {name: ask(change(known).clamp(-1.0, 1.0)) for name, change in UNSEEN_CHANGES.items()}
    unseen = torch.cat(list(changed.values()))
    nobody = {"val": ask(val)}
    if test is not None and len(test):
        nobody["test"] = ask(test)
    sets = {"train": logits, "train_changed": unseen, **nobody}
    threshold = recognition_threshold(nobody["val"])
    outside = highest_probability(nobody.get("test", nobody["val"]))
    scores: dict[str, Any] = {
        "top1": _accuracy(logits, identities),
        "top1_unseen": {name: _accuracy(changed[name], identities) for name in changed},
        "sensitivity_unseen": {name: _share_above(changed[name], threshold) for name in changed},
        "highest_probability": {name: float(highest_probability(values).mean()) for name, values in sets.items()},
        "identity_divergence": {name: float(divergence_from_uniform(values).mean()) for name, values in sets.items()},
        "threshold": threshold,
        "threshold_percentile": PERCENTILE,
        "sensitivity": {
            "train": _share_above(logits, threshold),
            "train_changed": _share_above(unseen, threshold),
        },
        "auroc": {
            "train": _auroc(highest_probability(logits), outside),
            "train_changed": _auroc(highest_probability(unseen), outside),
        },
    }
    scores["top1_unseen_mean"] = sum(scores["top1_unseen"].values()) / len(changed)
    if "test" in nobody:
        scores["false_alarms"] = _share_above(nobody["test"], threshold)
    return scores


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(dim=1) == labels).double().mean())


def _share_above(logits: Tensor, threshold: float) -> float:
    return float((highest_probability(logits).double() > threshold).double().mean())


def _auroc(somebody: Tensor, nobody: Tensor) -> float:
    truth = torch.cat([torch.ones(len(somebody)), torch.zeros(len(nobody))])
    return float(roc_auc_score(truth.numpy(), torch.cat([somebody, nobody]).numpy()))
