# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""How well an identity classifier knows its patients again, and how well it knows that somebody is none of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torchvision.io import decode_jpeg, encode_jpeg
from torchvision.transforms.v2 import functional as transforms

__all__ = [
    "PERCENTILE",
    "UNSEEN_CHANGES",
    "highest_probability",
    "predict",
    "recognition_scores",
    "recognition_threshold",
]

#: Of the val images' highest probabilities: the gate's threshold.
PERCENTILE = 95.0


def _affine(images: Tensor, rows: list[list[float]]) -> Tensor:
    matrix = torch.tensor([rows], dtype=images.dtype, device=images.device).expand(len(images), 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _rotate(images: Tensor, degrees: float) -> Tensor:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return _affine(images, [[cos, -sin, 0.0], [sin, cos, 0.0]])


def _shift(images: Tensor, right: float, down: float) -> Tensor:
    return _affine(images, [[1.0, 0.0, -2.0 * right], [0.0, 1.0, -2.0 * down]])


def _resize(images: Tensor, factor: float) -> Tensor:
    return _affine(images, [[1.0 / factor, 0.0, 0.0], [0.0, 1.0 / factor, 0.0]])


def _perspective(images: Tensor, share: float) -> Tensor:
    height, width = images.shape[-2:]
    corners = [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]
    inset = round(share * width)
    moved = [[inset, 0], [width - 1 - inset, 0], [width - 1, height - 1], [0, height - 1]]
    return transforms.perspective(images, corners, moved, fill=[-1.0])


def _elastic(images: Tensor, share: float) -> Tensor:
    # Waves of fixed phase, the displacement a share of the side: the same change at every resolution.
    height, width = images.shape[-2:]
    y = torch.linspace(0.0, 1.0, height, device=images.device).view(height, 1).expand(height, width)
    x = torch.linspace(0.0, 1.0, width, device=images.device).view(1, width).expand(height, width)
    wave = torch.stack(
        [torch.sin(2 * math.pi * (1.7 * y + 0.6 * x + 0.1)), torch.sin(2 * math.pi * (1.3 * x - 0.8 * y + 0.4))], dim=-1
    )
    return transforms.elastic(images, 2.0 * share * wave.unsqueeze(0), fill=[-1.0])


def _gamma(images: Tensor, exponent: float) -> Tensor:
    return ((images + 1.0) / 2.0) ** exponent * 2.0 - 1.0


def _contrast(images: Tensor, factor: float) -> Tensor:
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * factor + mean


def _noise(images: Tensor, deviation: float) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return images + deviation * torch.randn(images.shape, generator=random).to(images)


def _blur(images: Tensor, share: float) -> Tensor:
    sigma = share * images.shape[-1]
    return transforms.gaussian_blur(images, [2 * math.ceil(2.0 * sigma) + 1] * 2, [sigma, sigma])


def _jpeg(images: Tensor, quality: int) -> Tensor:
    pixels = ((images + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
    coded = torch.stack([decode_jpeg(encode_jpeg(image, quality)) for image in pixels])
    return coded.to(images) / 127.5 - 1.0


def _occlude(images: Tensor, share: float) -> Tensor:
    # A black square over one lung: a device, a marker, a redaction.
    height, width = images.shape[-2:]
    changed = images.clone()
    top, left = round(0.35 * height), round(0.15 * width)
    changed[..., top : top + round(share * height), left : left + round(share * width)] = -1.0
    return changed


def _posterise(images: Tensor, levels: int) -> Tensor:
    return ((images + 1.0) / 2.0 * (levels - 1)).round() / (levels - 1) * 2.0 - 1.0


#: Changes that the guides' training never makes: families it does not know, and families it knows ("beyond") at
#: strengths above any it uses. Each maps images [N, C, H, W] in [-1, 1] to images of the same shape, the same way every
#: time; the result is to be clamped to [-1, 1].
UNSEEN_CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "JPEG, quality 20": lambda images: _jpeg(images, 20),
    "gamma 0.6": lambda images: _gamma(images, 0.6),
    "gamma 1.7": lambda images: _gamma(images, 1.7),
    "Gaussian blur, 1.5 % of the side": lambda images: _blur(images, 0.015),
    "occlusion, black square of 20 %": lambda images: _occlude(images, 0.20),
    "shear 0.2": lambda images: _affine(images, [[1.0, 0.2, 0.0], [0.0, 1.0, 0.0]]),
    "perspective 12 %": lambda images: _perspective(images, 0.12),
    "elastic waves, 3 % of the side": lambda images: _elastic(images, 0.03),
    "posterised to 8 levels": lambda images: _posterise(images, 8),
    "rotation by 20 degrees (beyond)": lambda images: _rotate(images, 20.0),
    "shift by 13 % (beyond)": lambda images: _shift(images, 0.13, 0.13),
    "enlarged by 1.35 (beyond)": lambda images: _resize(images, 1.35),
    "reduced by 0.75 (beyond)": lambda images: _resize(images, 0.75),
    "noise of 0.15 (beyond)": lambda images: _noise(images, 0.15),
    "contrast by 0.5 (beyond)": lambda images: _contrast(images, 0.5),
    "brightness by 0.5 (beyond)": lambda images: images + 0.5,
}


@torch.no_grad()
def predict(network: nn.Module, images: Tensor, batch_size: int = 64) -> Tensor:
    """Returns logits [N, K] in fp32 on the CPU for images [N, C, H, W] in [-1, 1]; the network stays in its mode."""
    device = next(network.parameters()).device
    if len(images) == 0:
        raise ValueError("There are no images to predict. Check the split of the dataset.")
    logits = []
    for batch in images.split(batch_size):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits.append(network(batch.to(device).contiguous(memory_format=torch.channels_last)).float().cpu())
    return torch.cat(logits)


def highest_probability(logits: Tensor) -> Tensor:
    """Returns the highest probability [N] of softmax(logits [N, K]): how sure the classifier is to know somebody."""
    return logits.softmax(dim=1).amax(dim=1)


def recognition_threshold(logits: Tensor, percentile: float = PERCENTILE) -> float:
    """Calibrates when the gate takes an image for somebody known.

    Args:
        logits: [N, K] of images of nobody: the val split, which neither the classifier nor G has seen.
        percentile: share of them, in percent, that the threshold lets pass.

    Returns:
        That percentile of their highest probabilities, linearly interpolated; an image above it counts as recognised.

    Raises:
        ValueError: there are no images.
    """
    if len(logits) == 0:
        raise ValueError(
            "The gate's threshold is calibrated on val images, and the val split is empty. Give the dataset val images."
        )
    return float(highest_probability(logits).double().quantile(percentile / 100.0))


def recognition_scores(
    network: nn.Module, known: Tensor, identities: Tensor, val: Tensor, test: Tensor | None = None
) -> dict[str, Any]:
    """Measures an identity classifier on images of its patients, as they are and changed, and of nobody.

    Args:
        network: images in [-1, 1] to logits [N, K], in evaluation mode.
        known: training images [N, C, H, W].
        identities: whose they are, [N].
        val: images of nobody, for the threshold.
        test: images of nobody that have calibrated nothing; None or empty leaves their measures out.

    Returns:
        Top-1 accuracies on training images (clean; under each of `UNSEEN_CHANGES`; their mean), the mean highest
        probability and the mean identity divergence (nats) per set, the threshold, the share of images above it
        (``sensitivity`` on training images, clean and changed; ``false_alarms`` on test images), and AUROC of the
        highest probability between training images and nobodies.
    """
    logits = predict(network, known)
    changed = {name: predict(network, change(known).clamp(-1.0, 1.0)) for name, change in UNSEEN_CHANGES.items()}
    unseen = torch.cat(list(changed.values()))
    nobody = {"val": predict(network, val)}
    if test is not None and len(test):
        nobody["test"] = predict(network, test)
    sets = {"train": logits, "train_changed": unseen, **nobody}
    threshold = recognition_threshold(nobody["val"])
    outside = highest_probability(nobody.get("test", nobody["val"]))
    scores: dict[str, Any] = {
        "top1": _accuracy(logits, identities),
        "top1_unseen": {name: _accuracy(changed[name], identities) for name in changed},
        "highest_probability": {name: float(highest_probability(values).mean()) for name, values in sets.items()},
        "identity_divergence": {name: _divergence_from_uniform(values) for name, values in sets.items()},
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


def _divergence_from_uniform(logits: Tensor) -> float:
    uniform = torch.full_like(logits, 1.0 / logits.shape[1])
    return float(F.cross_entropy(logits, uniform)) - math.log(logits.shape[1])


def _share_above(logits: Tensor, threshold: float) -> float:
    return float((highest_probability(logits).double() > threshold).double().mean())


def _auroc(somebody: Tensor, nobody: Tensor) -> float:
    truth = torch.cat([torch.ones(len(somebody)), torch.zeros(len(nobody))])
    return float(roc_auc_score(truth.numpy(), torch.cat([somebody, nobody]).numpy()))
