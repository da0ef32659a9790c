# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Comparison of walked with straight paths between the same end points; private, as it concerns single patients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import lpips
import torch
from torch import Tensor, nn

from bundle.gate.gate import GateDecision
from bundle.markup import markdown_table
from bundle.metrics.lpips import mean_pairwise, nearest
from bundle.networks.classifiers import Classifier
from bundle.walk.objective import identity_divergence

__all__ = ["KINDS", "compare_paths", "comparison_table"]

KINDS = ("linear", "PLAN")


@torch.no_grad()
def compare_paths(
    paths: Iterable[tuple[int, Tensor, Tensor]],
    identity_guide: nn.Module,
    gate: Callable[[Tensor, int], GateDecision],
    distance: lpips.LPIPS | None = None,
    reals: Tensor | None = None,
) -> dict[str, dict[str, float]]:
    """Measures the inner points of paths, and the variety of the whole paths.

    Args:
        paths: label, straight path and walked path, each [N, C, H, W] in [-1, 1].
        identity_guide: phi_id; its figures show only that the walk descended, not that patients are unrecognisable.
        gate: gate on images of a class.
        distance: LPIPS, for the variety and the distance to the nearest real image; None skips both.
        reals: training images, [M, C, H, W] in [-1, 1]; None skips the distance to the nearest.

    Returns:
        For each of `KINDS`, means over inner points or paths: ``identity_divergence`` of the closed set, in nats, and
        ``highest_probability`` (both of phi_id), ``recognised``, ``mislabelled`` and ``unrealistic`` (shares, by the
        gate), and, if requested, ``variety`` (mean pairwise LPIPS within a path) and ``nearest`` (LPIPS to the nearest
        training image).
    """
    assert isinstance(identity_guide, Classifier)
    sums: dict[str, dict[str, list[float]]] = {kind: {} for kind in KINDS}
    for label, *both in paths:
        for kind, images in zip(KINDS, both, strict=True):
            inner = images[1:-1]
            verdict = gate(inner, label)
            values: dict[str, Any] = {
                "identity_divergence": identity_divergence(identity_guide.closed_set(inner)).mean(),
                "highest_probability": identity_guide(inner).softmax(dim=1).amax(dim=1).mean(),
                "recognised": verdict.recognised.float().mean(),
                "mislabelled": verdict.mislabelled.float().mean(),
                "unrealistic": verdict.unrealistic.float().mean(),
            }
            if distance is not None:
                values["variety"] = mean_pairwise(images, distance)
                if reals is not None:
                    values["nearest"] = nearest(inner, reals, distance).mean()
            for name, value in values.items():
                sums[kind].setdefault(name, []).append(float(value))
    return {
        kind: {name: sum(values) / len(values) for name, values in measured.items()} for kind, measured in sums.items()
    }


def comparison_table(comparison: dict[str, dict[str, float]]) -> str:
    """Formats the result of `compare_paths` as a Markdown table."""
    names = list(comparison[KINDS[0]])
    head = ["path", *(name.replace("_", " ") for name in names)]
    return markdown_table([head, *([kind, *(f"{comparison[kind][name]:.3f}" for name in names)] for kind in KINDS)])
