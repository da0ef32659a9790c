# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Function that configs/audit.json runs."""

from __future__ import annotations

from bundle.auditing.engine import AuditEngine

__all__ = ["audit"]


def audit(engine: AuditEngine) -> None:
    """Runs an audit, prints its verdict and ends with its exit code.

    Raises:
        SystemExit: with the code of the verdict, unless it is 0.
    """
    engine.run()
    verdict = engine.verdict
    assert verdict is not None
    reasons = "\n".join(f"- {reason}" for reason in verdict.reasons)
    altered = "" if engine.cohort.holds is not False else "\n- The folder is not as its manifest says."
    print(
        f"\n{verdict.title}\n{reasons}{altered}\nThe report: {engine.output_dir / 'report.html'}\n"
        f"Not to be shared: {engine.output_dir / 'private'}"
    )
    if verdict.code:
        raise SystemExit(verdict.code)
