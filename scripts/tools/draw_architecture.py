# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Draws docs/images/architecture.svg: the stages of ``bundle`` and what each imports, read from the code."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import grimp
import matplotlib
from matplotlib.figure import Figure

from bundle.figures.svg import as_svg
from bundle.files import atomic_write

__all__ = ["architecture_svg", "main", "stages"]

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs" / "images" / "architecture.svg"


def stages() -> dict[str, str]:
    """Returns the packages of ``bundle`` with their purpose, in the order of the data flow.

    The order is that of the import-linter contract in pyproject.toml, the earliest stage first.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    names = [name.strip() for layer in reversed(layers) for name in layer.split(":")]
    homes = {name: ROOT / "bundle" / name / "__init__.py" for name in names}
    return {
        name: str(ast.get_docstring(ast.parse(home.read_text(encoding="utf-8"))))
        for name, home in homes.items()
        if home.exists()
    }


def architecture_svg() -> str:
    """Returns the figure: a row for each stage, with a dot in the column of each stage that it imports."""
    purposes, graph = stages(), grimp.build_graph("bundle", cache_dir=None)
    names = list(purposes)
    figure = Figure(figsize=(12, 0.42 * len(names) + 1.2), layout="constrained")
    axes = figure.subplots()
    for row, (name, purpose) in enumerate(purposes.items()):
        axes.text(-0.7, row, name, ha="right", va="center", weight="bold")
        axes.text(len(names), row, purpose, ha="left", va="center", fontsize="small")
        axes.axhspan(row - 0.5, row + 0.5, xmax=0.999, color="#f2f5f9" if row % 2 else "white", zorder=0)
        for column, other in enumerate(names):
            ends = {"importer": f"bundle.{name}", "imported": f"bundle.{other}"}
            if column != row and graph.direct_import_exists(**ends, as_packages=True):
                axes.plot(column, row, "o", color="#1f5f99", markersize=7)
        axes.plot(row, row, "s", color="#c8d2dd", markersize=7)
    axes.set(xlim=(-0.6, len(names) + 14), ylim=(len(names) - 0.5, -0.5), yticks=[])
    axes.set_xticks(range(len(names)), names, rotation=60, ha="left", fontsize="small")
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text instead of outlines: a tenth of the size
        return as_svg(figure)


def main() -> None:
    """Writes the figure."""
    with atomic_write(PICTURE) as temporary:
        temporary.write_text(architecture_svg(), encoding="utf-8")
    print(f"{PICTURE.relative_to(ROOT)}: {len(stages())} stages")


if __name__ == "__main__":
    main()
