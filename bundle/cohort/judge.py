# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Last step of the walk's postprocessing: synthesis of the images, the gate's decision, and the ledger entry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from monai.transforms import Transform
from torch import Tensor

from bundle.cohort.ledger import WalkLedger
from bundle.gate.drawing import draw_and_judge_path
from bundle.gate.gate import GateDecision
from bundle.networks.stylegan2 import Generator

__all__ = ["JudgePathd"]


class JudgePathd(Transform):
    """Synthesises the points of a walked path, evaluates the gate and records both in the ledger; ends do not pass.

    Args:
        generator: G.
        gate: gate on images [N, C, H, W] in [-1, 1] of a class.
        ledger: record of the cohort's walked pairs.
    """

    def __init__(self, generator: Generator, gate: Callable[[Tensor, int], GateDecision], ledger: WalkLedger) -> None:
        self.generator = generator
        self.gate = gate
        self.ledger = ledger

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Reads ``pred`` (see `PlanWalkInferer`), ``label`` and ``index``; adds ``passed`` [N].

        A pair that only fills up the last block of its class is left as it is.
        """
        label, index, path = int(data["label"]), int(data["index"]), data["pred"]
        if not self.ledger.takes(label, index):
            return dict(data)
        pixels, verdict = draw_and_judge_path(self.generator, self.gate, path["w"], label)
        record = {
            "image": pixels,
            "w": path["w"],
            "w_linear": path["w_linear"],
            "loss_history": path["loss_history"],
            **vars(verdict),
        }
        self.ledger.add(label, index, {key: value.detach().cpu().clone() for key, value in record.items()})
        return {**data, "passed": verdict.passed}
