# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""What ``score`` runs: the bars that shipped weights have to meet, measured on the images they were trained on."""

from __future__ import annotations

from collections.abc import Callable
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

__all__ = ["equal_draws", "score_models"]

# Deviations of Gaussian blurs, in pixels, whose KID shows how much a loss of sharpness alone makes of it.
BLURS = (0.5, 0.8)
# One sample in so many is a training image in the control: the bar against memorising must be missed then.
PLANTED = 10
# Samples of each class in the picture.
PICTURED = 16
PERCENTILE = 0.05
COLLAPSE = 0.8
RECOGNITION = 0.9


def score_models(
    models: ModelSet, data: ImageData, output_dir: str, n_seeds: int = 5, squeezenet_file: str | None = None
) -> None:
    """Measures a generator and its identity guide against their bars and prints the table.

    For each class: KID of samples to training images, below that between these and the training images of another
    class, the mean over the others (neighbouring grades may hardly differ); mean pairwise LPIPS of samples, at least
    0.8 of that of training images; 5th percentile of LPIPS from a sample to the nearest training image, at least that
    of test images, at equal n, with a control that must miss it. Samples that crowd are near to all images: so that
    distance is also given to equal numbers of training and of held-out images (val and test), which no network has
    seen; what is nearer to the former has been remembered. Of grades: the mean grade that ``gate_class``, trained on
    real images, expects of the samples of a class, above that of the class below. For phi_id: share of the training
    images that it names under changes its training never used, at least 0.9. Samples are drawn with ``n_seeds``
    seeds, as many in a class as there are training images; the spread is over them.

    Args:
        models: ``generator``, ``identity_guide`` where it is to be measured, and ``gate_class`` to grade samples.
        data: the images that they were trained on.
        output_dir: gets ``scores.json`` and ``samples.png``, the first samples of each class.
        n_seeds: number of seeds.
        squeezenet_file: weights of SqueezeNet 1.1; None lets torchvision find them.

    Raises:
        TrunkUnavailable: there are none.
    """
    generator = models.generator
    lpips = lpips_model(squeezenet_file)
    train, train_label, train_identity = data.tensors(("train", "extra"))
    test, test_label, _ = data.tensors("test")
    names = data.class_names
    features = squeezenet_features(train, squeezenet_file)
    test_nearest = nearest(test, train, lpips)
    val, val_label, _ = data.tensors("val")
    held_out, held_out_label = torch.cat([val, test]), torch.cat([val_label, test_label])
    memory: dict[str, dict[str, float | None]] = {}
    rows: list[dict[str, Any]] = []
    pictured: list[Tensor] = []
    grades: list[list[float]] = []
    grader = models.networks.get("gate_class") if data.modality.ordered else None
    for label, name in enumerate(names):
        real = train[train_label == label]
        between = mean(
            kid(features[train_label == label], features[train_label == other])
            for other in range(len(names))
            if other != label
        )
        n_test = int((test_label == label).sum())
        bar_near = float(test_nearest[test_label == label].quantile(PERCENTILE))
        variety = mean_pairwise(real, lpips)
        measured: dict[str, list[float]] = {key: [] for key in ("kid", "variety", "near", "to_training", "to_held_out")}
        grades.append([])
        for seed in tqdm(range(n_seeds), desc=f"samples of {name}", unit="seed"):
            z = sample_z(range(len(real)), generator.z_dim, seed)
            samples = sample_images(generator, z, torch.full((len(real),), label))
            if seed == 0:
                pictured.append(samples[:PICTURED])
            measured["kid"].append(kid(squeezenet_features(samples, squeezenet_file), features[train_label == label]))
            measured["variety"].append(mean_pairwise(samples, lpips) / variety)
            if grader is not None:
                grades[-1].append(_expected_grade(grader, samples))
            distances = pairwise(samples, train, lpips)
            measured["near"].append(_low(distances[:n_test]))
            seen, unseen = equal_draws(train_label, held_out_label, seed)
            measured["to_training"].append(_low(distances[:, seen]))
            measured["to_held_out"].append(_low(pairwise(samples, held_out[unseen], lpips)))
            if seed == 0:
                planted = torch.cat([_blur(real[: n_test // PLANTED + 1], BLURS[0]), samples])[:n_test]
                control = _low(pairwise(planted, train, lpips))
        differences = [a - b for a, b in zip(measured["to_training"], measured["to_held_out"], strict=True)]
        memory[name] = {
            "to_training": mean(measured["to_training"]),
            "to_held_out": mean(measured["to_held_out"]),
            "difference": mean(differences),
            "difference_std": stdev(differences) if n_seeds > 1 else None,
        }
        bars: list[tuple[str, str, str, float, Callable[[float, float], bool]]] = [
            ("kid", "KID to training images", "below KID between the classes", between, lambda x, bar: x < bar),
            ("variety", "mean pairwise LPIPS, share of real", "at least", COLLAPSE, lambda x, bar: x >= bar),
            ("near", "LPIPS to nearest, 5th percentile", "at least test images'", bar_near, lambda x, bar: x >= bar),
        ]
        if grader is not None and label > 0:
            below = mean(grades[label - 1])
            bars.append(
                (
                    "grade",
                    "mean grade by gate_class",
                    f"above that of {names[label - 1]}",
                    below,
                    lambda x, bar: x > bar,
                )
            )
            measured["grade"] = grades[label]
        for key, measure, relation, bar, holds in bars:
            values = measured[key]
            rows.append(
                {
                    "class": name,
                    "measure": measure,
                    "mean": mean(values),
                    "std": stdev(values) if n_seeds > 1 else None,
                    "bar": bar,
                    "relation": relation,
                    "met": holds(mean(values), bar),
                }
            )
        rows.append(
            {
                "class": name,
                "measure": f"control, must miss: the same with 1 sample in {PLANTED} a blurred training image",
                "mean": control,
                "std": None,
                "bar": bar_near,
                "relation": "at least test images'",
                "met": control >= bar_near,
            }
        )
    if "identity_guide" in models.networks:
        recognition = recognition_scores(models.networks["identity_guide"], train, train_identity, val, test)
        for change, value in recognition["top1_unseen"].items():
            rows.append(_recognised(f"phi_id names training images: {change}", value))
        rows.append(_recognised("phi_id names training images: mean of these changes", recognition["top1_unseen_mean"]))
    save_png(image_grid(torch.cat(pictured), columns=PICTURED // 2), Path(output_dir) / "samples.png")
    blurred = {
        f"{sigma:g}": kid(squeezenet_features(_blur(train, sigma), squeezenet_file), features) for sigma in BLURS
    }
    result = {"features": FEATURES, "n_seeds": n_seeds, "rows": rows, "kid_of_blurred_training_images": blurred}
    result["near_at_equal_n"] = memory
    write_json(Path(output_dir) / "scores.json", result)
    scale = ", ".join(f"{three_digits(value)} at {sigma}" for sigma, value in blurred.items())
    print(f"{_table(rows)}\nFor scale, KID of the training images to themselves blurred (sigma in pixels): {scale}")
    for name, found in memory.items():
        spread = "" if found["difference_std"] is None else f" +- {found['difference_std']:.3g}"
        print(
            f"{name}: 5th percentile of LPIPS to the nearest of equally many training images "
            f"{found['to_training']:.4f}, held-out images {found['to_held_out']:.4f}; "
            f"difference {found['difference']:.3g}{spread} (below 0: memory)"
        )


def equal_draws(label: Tensor, other: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Draws indices into two sets of labels, [N] and [M]: of each class as many as the smaller side has of it."""
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
    """The grade that a classifier expects of images [N, C, H, W], their mean: classes times their probabilities."""
    probabilities = predict(grader, images).double().softmax(dim=1)
    return float((probabilities @ torch.arange(probabilities.shape[1], dtype=torch.float64)).mean())


def _low(distances: Tensor) -> float:
    """The low percentile of the distances [N, M] of N images to the nearest of M."""
    return float(distances.min(dim=1).values.quantile(PERCENTILE))


def _blur(images: Tensor, sigma: float) -> Tensor:
    return gaussian_blur(images, [5, 5], [sigma, sigma])


def _recognised(measure: str, value: float) -> dict[str, Any]:
    return {
        "class": "all",
        "measure": measure,
        "mean": value,
        "std": None,
        "bar": RECOGNITION,
        "relation": "at least",
        "met": value >= RECOGNITION,
    }


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [["class", "measure", "value", "bar", "met"]]
    for row in rows:
        spread = "" if row["std"] is None else f" +- {three_digits(row['std'])}"
        bar = f"{row['relation']} {three_digits(row['bar'])}"
        verdict = "yes" if row["met"] else "**no**"
        lines.append([row["class"], row["measure"], f"{three_digits(row['mean'])}{spread}", bar, verdict])
    return markdown_table(lines)
