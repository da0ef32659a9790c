# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Figures of latent walks: images of paths, loss histories, distances to the nearest training image."""

from __future__ import annotations

import os
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from bundle.figures.grids import image_grid
from bundle.files import atomic_write
from bundle.markup import three_digits

__all__ = ["path_picture", "save_loss_histories", "save_nearest", "save_walks"]


def path_picture(pairs: Sequence[tuple[str, Tensor, Tensor]]) -> Image.Image:
    """Arranges the linear path of each pair of end points above its optimised path.

    Args:
        pairs: caption, images of the linear path, images of the optimised path, both [N, C, H, W] in [-1, 1].
    """
    images = torch.cat([part for _, linear, plan in pairs for part in (linear, plan)])
    labels = [f"{caption}, {kind}" for caption, _, _ in pairs for kind in ("linear", "PLAN")]
    return image_grid(images, columns=len(pairs[0][1]), labels=labels)


def save_loss_histories(loss_histories: Sequence[tuple[str, Tensor]], path: str | os.PathLike[str]) -> None:
    """Plots the loss of walks over the optimisation steps.

    Args:
        loss_histories: caption and loss [steps] of each walk.
        path: name of the PNG file.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for caption, loss_history in loss_histories:
        axes.plot(range(1, len(loss_history) + 1), loss_history.tolist(), label=caption)
    axes.set(xlabel="step", ylabel="loss of the path", yscale="log")
    axes.legend(fontsize="small")
    _save(figure, path)


def save_nearest(
    pairs: Sequence[tuple[str, Tensor, Tensor]], trunk: str, n_reals: int, path: str | os.PathLike[str]
) -> None:
    """Plots LPIPS to the nearest training image along the linear and the optimised path, as in the paper.

    Args:
        pairs: for each pair its caption, the distances [N] along the linear path and those [N] along the optimised one.
        trunk: name of the trunk of LPIPS, for the axis label.
        n_reals: number of training images.
        path: name of the PNG file; it must be private, since the figure compares single images with real ones.
    """
    figure = Figure(figsize=(3.5 * len(pairs), 3.2), layout="constrained")
    for axes, (caption, linear, plan) in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
        for distances, kind in ((linear, "linear"), (plan, "PLAN")):
            axes.plot(range(1, len(distances) + 1), distances.tolist(), label=f"{kind}, mean {distances.mean():.3f}")
        axes.set(title=caption, xlabel="point of the path")
        axes.legend(fontsize="small")
    figure.axes[0].set_ylabel(f"LPIPS ({trunk}) to the nearest\nof {n_reals} training images")
    _save(figure, path)


def save_walks(arms: Sequence[tuple[str, float, Tensor, Tensor]], path: str | os.PathLike[str]) -> None:
    """Plots the cost of several kinds of walk, the identity divergence along their paths, and one path of each.

    Args:
        arms: name, cost per released image (in units of one synthesis and one gate check), identity divergence
            [P, N - 2] of all inner points, and images [N, C, H, W] in [-1, 1] of one path of the same pair for all.
        path: name of the PNG file.
    """
    figure = Figure(figsize=(11, 3.6 + 1.15 * len(arms)), layout="constrained")
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=[3.6, 1.15 * len(arms)])[:, 0]
    cost, recognition = top.subplots(1, 2)
    names = [name for name, *_ in arms]
    bars = cost.barh(names, [units for _, units, _, _ in arms], color=[f"C{index}" for index in range(len(arms))])
    cost.bar_label(bars, fmt=three_digits, padding=3)
    cost.set(xscale="log", xlabel="cost of a released image\n(1 = one synthesis and one check)")
    cost.invert_yaxis()
    cost.margins(x=0.25)
    for index, (_, _, divergence, _) in enumerate(arms):  # in the same colours as the bars
        places = range(2, divergence.shape[1] + 2)
        middle, high = divergence.clamp_min(1e-6).quantile(torch.tensor([0.5, 0.95]), dim=0).tolist()
        recognition.plot(places, middle, color=f"C{index}")
        recognition.plot(places, high, color=f"C{index}", linestyle="dotted")
    for label, style in (("median over paths", "solid"), ("95th percentile", "dotted")):
        recognition.plot([], [], color="grey", linestyle=style, label=label)
    recognition.set(yscale="log", xlabel="point of the path", ylabel="identity KL, real phi_id")
    recognition.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    rows = bottom.subplots(len(arms), 1, squeeze=False)[:, 0]
    for axes, (name, _, _, images) in zip(rows, arms, strict=True):
        axes.imshow(image_grid(images, columns=len(images)), cmap="gray")
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
        axes.set(xticks=[], yticks=[])
    _save(figure, path)


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)
