# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Function that configs/audit.json runs."""

from __future__ import annotations

from collections.abc import Callable

from bundle.auditing.engine import AuditEngine

__all__ = ["audit"]


def audit(
    engine: AuditEngine, audit_without_flagged: Callable[[AuditEngine], AuditEngine | None] | None = None
) -> None:
    """Runs an audit, prints its verdict and ends with its exit code.

    Args:
        engine: audit of a cohort.
        audit_without_flagged: removes the copies that were found and audits the rest, see `bundle.auditing.removal`;
            None to change nothing. If it removes images, the exit code is that of its audit.

    Raises:
        SystemExit: with the code of the verdict, unless it is 0.
    """
    engine.run()
    _print(engine)
    if audit_without_flagged is not None:
        engine.second = audit_without_flagged(engine)
        if engine.second is not None:
            engine = engine.second
            _print(engine)
    assert engine.verdict is not None
    if engine.verdict.code:
        raise SystemExit(engine.verdict.code)


def _print(engine: AuditEngine) -> None:
    verdict = engine.verdict
    assert verdict is not None
    reasons = "\n".join(f"- {reason}" for reason in verdict.reasons)
    altered = "" if engine.cohort.holds is not False else "\n- The folder is not as its manifest says."
    print(
        f"\n{verdict.title}\n{reasons}{altered}\nThe report: {engine.output_dir / 'report.html'}\n"
        f"Not to be shared: {engine.output_dir / 'private'}"
    )
