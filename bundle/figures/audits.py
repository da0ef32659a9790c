# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The chart of an audit report: correlations of several sets of images with their nearest training images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from bundle.figures.svg import as_svg

__all__ = ["correlation_chart"]

_COLOURS = {"cohort": "#b3261e"}
_GREY = "#5f6b7a"


def correlation_chart(quantiles: Mapping[str, Sequence[float]], threshold: float) -> str:
    """Plots one bar per set, from the 5th to the 95th percentile, as SVG.

    Only quantiles are plotted, since a point per image would disclose the distances of single images.

    Args:
        quantiles: 5, 25, 50, 75 and 95 % quantiles of the correlation with the nearest training image, by name of the
            set; sets with an empty list are omitted.
        threshold: correlation above which an image counts as a copy.

    Returns:
        An ``<svg>`` element.
    """
    shown = {name: values for name, values in quantiles.items() if values}
    figure = Figure(figsize=(8.0, 0.8 + 0.45 * len(shown)), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    for height, (name, (low, lower, middle, upper, high)) in enumerate(reversed(shown.items())):
        colour = _COLOURS.get(name, _GREY)
        axes.plot([low, high], [height, height], color=colour, linewidth=1.5)
        axes.plot([lower, upper], [height, height], color=colour, linewidth=9.0, alpha=0.5, solid_capstyle="butt")
        axes.plot([middle, middle], [height - 0.25, height + 0.25], color=colour, linewidth=2.5)
    axes.axvline(threshold, color="black", linestyle="--", linewidth=1.0)
    axes.text(threshold, len(shown) - 0.45, " copies", ha="left", va="bottom", fontsize=9)
    axes.set_yticks(range(len(shown)), list(reversed(shown)))
    axes.set_ylim(-0.6, len(shown) - 0.1)
    axes.set_xlabel("correlation with the nearest training image (5, 25, 50, 75, 95 %)")
    axes.spines[["top", "right"]].set_visible(False)
    return as_svg(figure)
