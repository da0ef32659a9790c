# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Charts of an evaluation: distances along paths, and the measures of all arms side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bundle.files import atomic_write

__all__ = ["arms_chart", "distance_chart", "save_chart"]

_KINDS = {
    "long_lines": ("Linear", "#5f6b7a"),
    "long_walks": ("PLAN", "#b3261e"),
    "long_published": ("published", "#1f6feb"),
}


def distance_chart(curves: Mapping[str, Mapping[str, Any]], trunk: str, n_reals: int) -> Figure:
    """Plots LPIPS to the nearest training image along paths, as in the paper but over many pairs of end points.

    Args:
        curves: ``low``, ``median`` and ``high`` at each point, and the number of ``paths``, by name of the pool.
        trunk: name of the LPIPS variant, for the axis label.
        n_reals: number of training images.
    """
    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for pool, curve in curves.items():
        name, colour = _KINDS[pool]
        places = range(1, len(curve["median"]) + 1)
        if pool == "long_published":  # too few pairs for a band
            axes.plot(
                places, curve["median"], color=colour, linestyle="dashed", label=f"{name}, {curve['paths']} paths"
            )
            continue
        axes.fill_between(places, curve["low"], curve["high"], color=colour, alpha=0.15, linewidth=0)
        axes.plot(places, curve["median"], color=colour, label=f"{name}, {curve['paths']} paths")
    axes.set(xlabel="point of the path", ylabel=f"{trunk}\nto the nearest of {n_reals} training images")
    axes.legend(fontsize="small", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def arms_chart(
    titles: Sequence[str], columns: Sequence[tuple[str, Sequence[Mapping[str, Any]], Mapping[str, Any] | None]]
) -> Figure:
    """Plots measures of all arms with their intervals, one panel per measure.

    Args:
        titles: titles of the arms.
        columns: for each measure its title, a cell for each arm, and the cell of the test images or None. A cell has
            ``value``, ``low`` and ``high``, or none of them if the measure cannot be estimated.
    """
    rows = -(-len(columns) // 3)
    figure = Figure(figsize=(3.1 * min(3, len(columns)) + 2.0, rows * (0.9 + 0.22 * len(titles))), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, min(3, len(columns)), squeeze=False, sharey=True).flatten()
    for axes, (title, cells, strangers) in zip(grid, columns, strict=False):
        for height, cell in enumerate(cells):
            if "value" in cell:
                axes.plot([cell["low"], cell["high"]], [height, height], color="#5f6b7a", linewidth=2)
                axes.plot(cell["value"], height, "o", color="#b3261e" if "PLAN" in titles[height] else "#1b1f24")
        if strangers and "value" in strangers:
            axes.axvline(strangers["value"], color="black", linestyle="dotted", linewidth=1)
        axes.set_title(_wrapped(title), fontsize="small")
        axes.set_yticks(range(len(titles)), titles, fontsize="small")
        axes.tick_params(axis="x", labelsize="small")
        axes.set_ylim(len(titles) - 0.5, -0.5)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def save_chart(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure as PNG."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _wrapped(title: str, width: int = 34) -> str:
    lines = [""]
    for word in title.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
