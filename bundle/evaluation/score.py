# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The command ``score``: tests a generator and its identity guide against thresholds for released weights."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur
from tqdm import tqdm

from bundle.data import ImageData
from bundle.figures import image_grid, save_png
from bundle.files import write_json
from bundle.markup import markdown_table, three_digits
from bundle.metrics.distribution import kid
from bundle.metrics.features import FEATURES, squeezenet_features
from bundle.metrics.lpips import lpips_model, mean_pairwise, nearest, pairwise
from bundle.metrics.recognition import predict, recognition_scores
from bundle.networks.model_set import ModelSet
from bundle.networks.sampling import sample_images, sample_z
from bundle.networks.stylegan2 import Generator

__all__ = ["equal_draws", "score_models"]

# Standard deviations, in pixels, of Gaussian blurs whose KID shows the effect of a loss of sharpness alone.
BLURS = (0.5, 0.8)
# One sample in PLANTED is replaced by a training image in the control of the memorisation threshold, which must fail.
PLANTED = 10
# Number of samples of each class in samples.png.
PICTURED = 16
PERCENTILE = 0.05
COLLAPSE = 0.8
RECOGNITION = 0.9


def score_models(
    models: ModelSet, data: ImageData, output_dir: str, n_seeds: int = 5, squeezenet_file: str | None = None
) -> None:
    """Compares a generator and its identity guide with acceptance thresholds and prints the table.

    Samples are made with ``n_seeds`` seeds, as many per class as there are training images. It is tested for each class
    whether

    - KID of samples to training images is below the mean KID between training images of this and of each other class;
    - mean pairwise LPIPS of samples is at least 0.8 of that of training images;
    - the 5th percentile of LPIPS from samples to their nearest training images is at least that of as many test images
      (a control with planted training images must fail this);
    - for ordinal grades, the mean grade that ``gate_class`` predicts is above that of the next lower class;

    and whether phi_id recognises at least 0.9 of the training images under each alteration in `UNSEEN_CHANGES`. Since
    samples with little variety are near to all images, the percentile is also reported for equal numbers of training
    and held-out (val and test) images: a smaller distance to the training images indicates memorisation.

    Args:
        models: ``generator`` and, optionally, ``identity_guide`` and ``gate_class``, whose thresholds are then tested.
        data: data set that the networks were trained on.
        output_dir: folder for ``scores.json`` and ``samples.png``, the first samples of each class.
        n_seeds: number of seeds.
        squeezenet_file: file of the SqueezeNet 1.1 weights; None for those that torchvision downloads or has cached.

    Raises:
        TrunkUnavailable: the SqueezeNet weights are not available.
    """
    real = _RealImages(data, squeezenet_file)
    grader = models.networks.get("gate_class") if data.modality.ordered else None
    classes = [_measure_class(models.generator, grader, real, label, n_seeds) for label in range(len(real.names))]
    rows: list[dict[str, Any]] = []
    for found, below in zip(classes, [None, *classes], strict=False):
        rows += _class_rows(found, below if grader is not None else None)
    if "identity_guide" in models.networks:
        rows += _recognition_rows(models.networks["identity_guide"], real)
    pictured = torch.cat([found.pictured for found in classes])
    save_png(image_grid(pictured, columns=PICTURED // 2), Path(output_dir) / "samples.png")
    blurred = {f"{sigma:g}": kid(real.measure_features(_blur(real.train, sigma)), real.features) for sigma in BLURS}
    memory = {found.name: _memory(found.measured) for found in classes}
    result = {"features": FEATURES, "n_seeds": n_seeds, "rows": rows, "kid_of_blurred_training_images": blurred}
    write_json(Path(output_dir) / "scores.json", {**result, "near_at_equal_n": memory})
    scale = ", ".join(f"{three_digits(value)} at {sigma}" for sigma, value in blurred.items())
    print(f"{_table(rows)}\nFor scale, KID of the training images to themselves blurred (sigma in pixels): {scale}")
    for name, values in memory.items():
        spread = "" if values["difference_std"] is None else f" +- {values['difference_std']:.3g}"
        print(
            f"{name}: 5th percentile of LPIPS to the nearest of equally many training images "
            f"{values['to_training']:.4f}, held-out images {values['to_held_out']:.4f}; "
            f"difference {values['difference']:.3g}{spread} (below 0: memory)"
        )


class _RealImages:
    """Training and held-out images, with the features and distances that all classes share."""

    def __init__(self, data: ImageData, squeezenet_file: str | None) -> None:
        self.names = data.class_names
        self.squeezenet_file = squeezenet_file
        self.lpips = lpips_model(squeezenet_file)
        self.train, self.train_label, self.train_identity = data.tensors(("train", "extra"))
        self.val, val_label, _ = data.tensors("val")
        self.test, self.test_label, _ = data.tensors("test")
        self.held_out, self.held_out_label = torch.cat([self.val, self.test]), torch.cat([val_label, self.test_label])
        self.features = self.measure_features(self.train)
        self.test_nearest = nearest(self.test, self.train, self.lpips)

    def measure_features(self, images: Tensor) -> Tensor:
        """Returns features [N, 512] for KID."""
        return squeezenet_features(images, self.squeezenet_file)

    def between(self, label: int) -> float | None:
        """Returns the mean KID between a class and each other class; None if there is no other class."""
        mine = self.features[self.train_label == label]
        others = [self.features[self.train_label == other] for other in range(len(self.names)) if other != label]
        return mean(kid(mine, other) for other in others) if others else None


@dataclass(frozen=True)
class _ClassScore:
    """The measures of the samples of one class.

    Attributes:
        name: name of the class.
        measured: values by measure, one per seed.
        between: threshold of the KID; None if there is no other class.
        bar_near: threshold of the 5th percentile of the distance to the nearest training image.
        control: this percentile if some samples are replaced by training images.
        pictured: first samples.
    """

    name: str
    measured: dict[str, list[float]]
    between: float | None
    bar_near: float
    control: float
    pictured: Tensor


def _measure_class(
    generator: Generator, grader: nn.Module | None, real: _RealImages, label: int, n_seeds: int
) -> _ClassScore:
    mine = real.train[real.train_label == label]
    features = real.features[real.train_label == label]
    near = real.test_nearest[real.test_label == label]
    variety = mean_pairwise(mine, real.lpips)
    measured: dict[str, list[float]] = {}
    for seed in tqdm(range(n_seeds), desc=f"samples of {real.names[label]}", unit="seed"):
        z = sample_z(range(len(mine)), generator.z_dim, seed)
        samples = sample_images(generator, z, torch.full((len(mine),), label))
        distances = pairwise(samples, real.train, real.lpips)
        seen, unseen = equal_draws(real.train_label, real.held_out_label, seed)
        values = {
            "kid": kid(real.measure_features(samples), features),
            "variety": mean_pairwise(samples, real.lpips) / variety,
            "near": _low(distances[: len(near)]),
            "to_training": _low(distances[:, seen]),
            "to_held_out": _low(pairwise(samples, real.held_out[unseen], real.lpips)),
        }
        if grader is not None:
            values["grade"] = _expected_grade(grader, samples)
        for key, value in values.items():
            measured.setdefault(key, []).append(value)
        if seed == 0:
            pictured = samples[:PICTURED]
            planted = torch.cat([_blur(mine[: len(near) // PLANTED + 1], BLURS[0]), samples])[: len(near)]
            control = _low(pairwise(planted, real.train, real.lpips))
    bar_near = float(near.quantile(PERCENTILE))
    return _ClassScore(real.names[label], measured, real.between(label), bar_near, control, pictured)


def _class_rows(found: _ClassScore, below: _ClassScore | None) -> list[dict[str, Any]]:
    """Returns the rows that compare a class with its thresholds; `below` is the next lower grade, if there is one."""
    bars: list[tuple[str, str, str, float | None, Callable[[float, float], bool]]] = [
        ("kid", "KID to training images", "below KID between the classes", found.between, operator.lt),
        ("variety", "mean pairwise LPIPS, share of real", "at least", COLLAPSE, operator.ge),
        ("near", "LPIPS to nearest, 5th percentile", "at least test images'", found.bar_near, operator.ge),
    ]
    if below is not None:
        grade = mean(below.measured["grade"])
        bars.append(("grade", "mean grade by gate_class", f"above that of {below.name}", grade, operator.gt))
    rows = [
        _row(found.name, measure, found.measured[key], bar, relation, holds)
        for key, measure, relation, bar, holds in bars
    ]
    measure = f"control, must miss: the same with 1 sample in {PLANTED} a blurred training image"
    return [*rows, _row(found.name, measure, [found.control], found.bar_near, "at least test images'")]


def _recognition_rows(guide: nn.Module, real: _RealImages) -> list[dict[str, Any]]:
    scores = recognition_scores(guide, real.train, real.train_identity, real.val, real.test)
    shares = {**scores["top1_unseen"], "mean of these changes": scores["top1_unseen_mean"]}
    return [
        _row("all", f"phi_id names training images: {change}", [share], RECOGNITION, "at least")
        for change, share in shares.items()
    ]


def _row(
    name: str,
    measure: str,
    values: list[float],
    bar: float | None,
    relation: str,
    holds: Callable[[float, float], bool] = operator.ge,
) -> dict[str, Any]:
    return {
        "class": name,
        "measure": measure,
        "mean": mean(values),
        "std": stdev(values) if len(values) > 1 else None,
        "bar": bar,
        "relation": relation if bar is not None else "no bar: there is one class alone",
        "met": None if bar is None else holds(mean(values), bar),
    }


def _memory(measured: dict[str, list[float]]) -> dict[str, float | None]:
    """Compares the distances of samples to training images with those to held-out images."""
    differences = [a - b for a, b in zip(measured["to_training"], measured["to_held_out"], strict=True)]
    return {
        "to_training": mean(measured["to_training"]),
        "to_held_out": mean(measured["to_held_out"]),
        "difference": mean(differences),
        "difference_std": stdev(differences) if len(differences) > 1 else None,
    }


def equal_draws(label: Tensor, other: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Draws random indices into two sets of labels [N] and [M], equally many of each class in both."""
    random = torch.Generator().manual_seed(seed)
    draws: tuple[list[Tensor], list[Tensor]] = ([], [])
    for value in label.unique():
        members = [(side == value).nonzero().squeeze(1) for side in (label, other)]
        for draw, indices in zip(draws, members, strict=True):
            order = torch.randperm(len(indices), generator=random)
            draw.append(indices[order[: min(map(len, members))]])
    return torch.cat(draws[0]), torch.cat(draws[1])


@torch.no_grad()
def _expected_grade(grader: nn.Module, images: Tensor) -> float:
    """Returns the mean over images of the expected grade, which is the sum of grades times their probabilities."""
    probabilities = predict(grader, images).double().softmax(dim=1)
    return float((probabilities @ torch.arange(probabilities.shape[1], dtype=torch.float64)).mean())


def _low(distances: Tensor) -> float:
    """Returns the 5th percentile of the distances to the nearest image, from all distances [N, M]."""
    return float(distances.min(dim=1).values.quantile(PERCENTILE))


def _blur(images: Tensor, sigma: float) -> Tensor:
    return gaussian_blur(images, [5, 5], [sigma, sigma])


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [["class", "measure", "value", "bar", "met"]]
    for row in rows:
        spread = "" if row["std"] is None else f" +- {three_digits(row['std'])}"
        bar = row["relation"] if row["bar"] is None else f"{row['relation']} {three_digits(row['bar'])}"
        verdict = {None: "", True: "yes", False: "**no**"}[row["met"]]
        lines.append([row["class"], row["measure"], f"{three_digits(row['mean'])}{spread}", bar, verdict])
    return markdown_table(lines)
