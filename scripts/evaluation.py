# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Function that configs/evaluate.json runs."""

from __future__ import annotations

from bundle.allocator import keep_freed_memory
from bundle.evaluation.engine import EvaluationEngine

__all__ = ["evaluate"]


def evaluate(engine: EvaluationEngine) -> None:
    """Runs an evaluation and prints the path of its report."""
    keep_freed_memory()
    engine.run()
    print(f"\nThe report: {engine.output_dir / 'report.html'}\nNot to be shared: {engine.output_dir / 'private'}")
