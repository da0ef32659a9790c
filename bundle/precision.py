# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Numerical precision: bf16 on devices that support it, and fp32 without TF32 where results must be exact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["bf16_autocast", "computes_in_bf16", "full_fp32"]


def computes_in_bf16(device: torch.device) -> bool:
    """Returns whether the device has instructions for bf16.

    A CPU without them converts to fp32 and back in every operation, which is up to ten times slower than fp32, and some
    of these CPUs do not support the backward pass. PyTorch's limit ``ATEN_CPU_CAPABILITY`` is respected.
    """
    if device.type != "cpu":
        return True
    # PyTorch releases without this function count as lacking the instructions, which is safe but slower.
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and bool(capabilities.get("avx512_bf16", False))


def bf16_autocast(device: torch.device, enabled: bool = True) -> torch.autocast:
    """Returns a context of autocast to bf16 on devices that support it; others compute in fp32.

    Args:
        device: device of the network and its inputs.
        enabled: False for fp32 on any device.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled and computes_in_bf16(device))


@contextmanager
def full_fp32() -> Iterator[None]:
    """Context or decorator in which GPUs compute fp32 with its full 24-bit significand; autocast is not affected.

    By default, PyTorch lets cuDNN round the inputs of convolutions to TF32 (11 bits), and users can allow this for
    matrix products. Results specified as fp32 (gate decisions, released images, metrics) are computed in this context
    so that they do not depend on such settings, which are restored afterwards.
    """
    cudnn: Any = torch.backends.cudnn
    backends = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    earlier = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, earlier, strict=True):
            backend.fp32_precision = precision
