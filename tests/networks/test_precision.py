# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from bundle.networks.precision import bf16_autocast, computes_in_bf16

CPU = torch.device("cpu")


def product_on(
    monkeypatch: pytest.MonkeyPatch, instructions: str, bf16: bool | None, enabled: bool = True
) -> torch.dtype:
    """Returns the dtype that a layer answers in, on a CPU with these instructions (None: not told)."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {} if bf16 is None else {"avx512_bf16": bf16})
    with torch.no_grad(), bf16_autocast(CPU, enabled):
        return torch.nn.Linear(4, 4)(torch.zeros(2, 4)).dtype


def test_cpus_with_the_instructions_compute_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    assert product_on(monkeypatch, "AVX512", True) == torch.bfloat16


@pytest.mark.parametrize(
    ("instructions", "bf16"),
    [("AVX512", False), ("AVX2", False), ("AVX2", True), ("DEFAULT", None)],
    ids=["first AVX-512", "no AVX-512", "limited by ATEN_CPU_CAPABILITY", "another architecture"],
)
def test_other_cpus_stay_in_fp32(monkeypatch: pytest.MonkeyPatch, instructions: str, bf16: bool | None) -> None:
    assert product_on(monkeypatch, instructions, bf16) == torch.float32


def test_fp32_can_be_asked_for_on_any_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert product_on(monkeypatch, "AVX512", True, enabled=False) == torch.float32


def test_releases_that_do_not_tell_stay_in_fp32_and_accelerators_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities")

    assert not computes_in_bf16(CPU)
    assert computes_in_bf16(torch.device("cuda"))
