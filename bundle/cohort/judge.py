# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The end of the walk's postprocessing: a path becomes images, the gate judges them, the ledger keeps the outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform
from torch import Tensor

from bundle.cohort.ledger import WalkLedger
from bundle.figures import from_uint8, to_uint8
from bundle.gate.gate import Verdict
from bundle.networks.stylegan2 import Generator

__all__ = ["JudgePathd", "synthesise"]

# Points drawn at once: so few that what the generator computes of them stays in a core's cache.
PART = 4


@torch.no_grad()
def synthesise(generator: Generator, w: Tensor) -> Tensor:
    """Draws the points of one path in fp32 and rounds them to 8 bits, the form in which they are judged and released.

    Args:
        generator: G; its weights are laid out as channels_last, which a CPU is faster with.
        w: [N, w_dim].

    Returns:
        uint8 [N, H, W] for one channel, [N, H, W, 3] for three, on the CPU.
    """
    generator.to(memory_format=torch.channels_last)
    parts = [to_uint8(generator.synthesis(part)) for part in w.to(next(generator.parameters()).device).split(PART)]
    return torch.from_numpy(np.concatenate(parts))


class JudgePathd(Transform):
    """Draws and judges the points of one walked path, the ends included, and puts them into the ledger.

    Args:
        generator: G.
        gate: judges images [N, C, H, W] in [-1, 1] of a class.
        ledger: gets the outcome.
    """

    def __init__(self, generator: Generator, gate: Callable[[Tensor, int], Verdict], ledger: WalkLedger) -> None:
        self.generator = generator
        self.gate = gate
        self.ledger = ledger

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Takes ``pred`` (see `PlanWalkInferer`), ``label`` and ``index``; adds ``passed`` [N]."""
        label, index, path = int(data["label"]), int(data["index"]), data["pred"]
        pixels = synthesise(self.generator, path["w"])
        verdict = self.gate(from_uint8(pixels).to(path["w"].device), label)
        record = {
            "image": pixels,
            "w": path["w"],
            "w_linear": path["w_linear"],
            "course": path["course"],
            **vars(verdict),
        }
        self.ledger.add(label, index, {key: value.detach().cpu().clone() for key, value in record.items()})
        return {**data, "passed": verdict.passed}
