# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch

from bundle.auditing.distances import Step
from bundle.gate.drawing import synthesise
from bundle.gate.gate import Gate
from bundle.metrics.features import squeezenet_features
from bundle.metrics.lpips import mean_pairwise, pairwise, pairwise_within
from bundle.networks.realism import RealismJudge
from bundle.networks.sampling import sample_images
from bundle.precision import bf16_autocast, computes_in_bf16, full_fp32

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


def tf32_flags() -> list[str]:
    """What GPUs may round fp32 to in matrix products, convolutions and recurrent layers."""
    cudnn: Any = torch.backends.cudnn
    backends = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    return [backend.fp32_precision for backend in backends]


@pytest.mark.parametrize("allowed", [False, True])
def test_full_fp32_forbids_tf32_and_restores_what_was_set(allowed: bool, request: pytest.FixtureRequest) -> None:
    if allowed:
        matmul = torch.backends.cuda.matmul
        request.addfinalizer(lambda: setattr(matmul, "fp32_precision", "none"))
        matmul.fp32_precision = "tf32"
    before = tf32_flags()
    assert before[0] == ("tf32" if allowed else "none")
    with full_fp32(), full_fp32():
        assert tf32_flags() == ["ieee"] * 3
    assert tf32_flags() == before
    with pytest.raises(ZeroDivisionError), full_fp32():
        1 / 0  # noqa: B018
    assert tf32_flags() == before


class Watcher(torch.nn.Module):
    """Answers with the flags under which it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.z_dim = self.w_dim = 4
        self.seen: list[list[str]] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Returns as many logits, or image channels, as it takes."""
        self.seen.append(tf32_flags())
        return image.new_zeros(len(image), 3, 8, 8) if image.ndim == 2 else image.mean(dim=(2, 3))

    def mapping(self, z: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Returns z."""
        return z

    @property
    def synthesis(self) -> Watcher:
        """Stands for the synthesis network."""
        return self


class WatchedDistance(RealismJudge):
    """A judge of realism that calls a watcher."""

    def __init__(self, watcher: Watcher) -> None:
        super().__init__(1, 1)
        self.watcher = watcher

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Returns features of the right form that say nothing."""
        return self.watcher(images)[:, :1].expand(-1, len(self.deviation))


def test_what_leaves_and_what_judges_it_is_computed_in_full_fp32() -> None:
    watcher = Watcher()
    images = torch.zeros(2, 3, 8, 8)
    Gate(watcher, watcher, WatchedDistance(watcher), 0.9, 1.0)(images, 0)
    assert len(watcher.seen) == 3
    synthesise(watcher, torch.zeros(2, 4))  # type: ignore[arg-type]
    sample_images(watcher, torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))  # type: ignore[arg-type]
    step = Step("audit", 1.0, lambda: {"flags": watcher(images)})
    step.run()
    assert watcher.seen == [["ieee"] * 3] * 6


def test_features_and_lpips_are_computed_in_full_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def trunk(*arguments: object) -> torch.nn.Module:
        network = torch.nn.Conv2d(3, 512, 1).requires_grad_(False)
        network.register_forward_hook(lambda *_: seen.append(tf32_flags()))
        return network

    def vectors(images: torch.Tensor, model: object) -> torch.Tensor:
        seen.append(tf32_flags())
        return images.flatten(1)

    images, place = torch.rand(2, 3, 8, 8), torch.nn.Linear(1, 1)
    monkeypatch.setattr("bundle.metrics.features.squeezenet_trunk", trunk)
    monkeypatch.setattr("bundle.metrics.lpips.embed", vectors)
    squeezenet_features(images)
    pairwise(images, images, place)
    pairwise_within(images, place)
    mean_pairwise(images, place)
    assert len(seen) >= 7
    assert all(flags == ["ieee"] * 3 for flags in seen)
