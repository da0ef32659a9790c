# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Synthesis of images from latents and the gate's decision on them, shared by release, comparisons and benchmarks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bundle.figures import from_uint8, to_uint8
from bundle.gate.gate import GateDecision
from bundle.networks.stylegan2 import Generator
from bundle.precision import full_fp32

__all__ = ["draw_and_judge", "draw_and_judge_path", "synthesise"]

# Points synthesised at once: few enough that the generator's activations fit into a core's cache.
PART = 4


@torch.no_grad()
@full_fp32()
def synthesise(generator: Generator, w: Tensor) -> Tensor:
    """Synthesises images in fp32 and rounds them to 8 bits, the form in which they are evaluated and released.

    Args:
        generator: G; its weights are converted to channels_last, which is faster on a CPU.
        w: latents, [N, w_dim].

    Returns:
        uint8 [N, H, W] for one channel, [N, H, W, 3] for three, on the CPU.
    """
    generator.to(memory_format=torch.channels_last)
    parts = [to_uint8(generator.synthesis(part)) for part in w.to(next(generator.parameters()).device).split(PART)]
    return torch.from_numpy(np.concatenate(parts))


def draw_and_judge(
    generator: Generator, gate: Callable[[Tensor, int], GateDecision], w: Tensor, label: int
) -> tuple[Tensor, GateDecision]:
    """Synthesises 8-bit images as they would be released and evaluates the gate on them.

    Args:
        generator: G.
        gate: gate on images [N, C, H, W] in [-1, 1] of a class, on the generator's device.
        w: latents of one class, [N, w_dim].
        label: class of the latents.

    Returns:
        Pixels, see `synthesise`, and the gate's decisions on them.
    """
    pixels = synthesise(generator, w)
    return pixels, gate(from_uint8(pixels).to(next(generator.parameters()).device), label)


def draw_and_judge_path(
    generator: Generator, gate: Callable[[Tensor, int], GateDecision], w: Tensor, label: int
) -> tuple[Tensor, GateDecision]:
    """Synthesises and judges the points of a path as `draw_and_judge`; its two ends never pass.

    The ends are random samples that no walk has led away from patients, and nearly all images of a cohort that
    resemble a patient are ends.

    Args:
        generator: see `draw_and_judge`.
        gate: see `draw_and_judge`.
        w: points of the path, both ends included, [N, w_dim].
        label: class of the path.

    Returns:
        Pixels and decisions of all N points.
    """
    pixels, decision = draw_and_judge(generator, gate, w, label)
    inner = torch.ones_like(decision.passed)
    inner[0] = inner[-1] = False
    return pixels, dataclasses.replace(decision, passed=decision.passed & inner)
