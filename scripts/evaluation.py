# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""What configs/evaluate.json runs."""

from __future__ import annotations

from bundle.allocator import keep_freed_memory
from bundle.evaluation.engine import EvaluationEngine

__all__ = ["evaluate"]


def evaluate(engine: EvaluationEngine) -> None:
    """Runs an evaluation and says where its report is."""
    keep_freed_memory()
    engine.run()
    print(f"\nThe report: {engine.output_dir / 'report.html'}\nNot to be shared: {engine.output_dir / 'private'}")
