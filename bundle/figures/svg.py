# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Conversion of charts to SVG text, for reports that consist of a single file."""

from __future__ import annotations

import io

import matplotlib
from matplotlib.figure import Figure

__all__ = ["as_svg"]


def as_svg(figure: Figure) -> str:
    """Returns the ``<svg>`` element of a figure without date or random ids, so that equal figures give equal text."""
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "report"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]
