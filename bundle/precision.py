# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""bf16 where it is computed in, fp32 where it would only be imitated, and fp32 of full precision where it matters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["bf16_autocast", "computes_in_bf16", "full_fp32"]


def computes_in_bf16(device: torch.device) -> bool:
    """Tells whether the device has instructions for bf16.

    A CPU without them converts to fp32 and back at every step, up to ten times slower than fp32 alone; some of these
    CPUs refuse the backward pass altogether. PyTorch's own limit of instructions, the environment variable
    ``ATEN_CPU_CAPABILITY``, is obeyed.
    """
    if device.type != "cpu":
        return True
    # Releases without the question are taken for CPUs without the instructions: right, if slower.
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and bool(capabilities.get("avx512_bf16", False))


def bf16_autocast(device: torch.device, enabled: bool = True) -> torch.autocast:
    """Autocast to bf16 on devices that compute in it; the others stay in fp32.

    Args:
        device: of the network and what it is given.
        enabled: False for fp32 on any device.

    Returns:
        The context.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled and computes_in_bf16(device))


@contextmanager
def full_fp32() -> Iterator[None]:
    """Context, or decorator, in which GPUs compute fp32 with all of its 24 bits; autocast is not affected.

    By default, PyTorch lets cuDNN round what it convolves to TF32, which has 11 bits, and users can allow the same for
    matrix products. Results that are promised in fp32 (the gate's judgement, released images, metrics) are computed in
    here, so that they do not depend on such settings. The earlier settings are restored at the end.
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
