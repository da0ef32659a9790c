# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from bundle.networks.stylegan2 import Generator, ModulatedConv2d
from bundle.networks.stylegan2.grouped import GroupedModulatedConv2d, with_grouped_convolutions
from bundle.training import speed as benchmark
from bundle.training.losses import r1_penalty
from bundle.training.speed import Speed, table
from scripts.tools import benchmark_training


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of a few feature maps."""
    for name in ("Generator", "Discriminator"):
        network = getattr(benchmark_training, name)

        def build(*arguments: int, network: type = network, **options: int) -> torch.nn.Module:
            return network(*arguments, channel_base=128, channel_max=4, **options)

        for module in (benchmark, benchmark_training):
            monkeypatch.setattr(module, name, build)


def test_grouped_convolutions_compute_the_same() -> None:
    torch.manual_seed(0)
    generator = Generator(32, channel_base=256, channel_max=8, z_dim=4, w_dim=4)
    grouped = with_grouped_convolutions(copy.deepcopy(generator))
    layers = [module for module in grouped.modules() if isinstance(module, ModulatedConv2d)]
    assert len(layers) == 11
    assert all(isinstance(layer, GroupedModulatedConv2d) for layer in layers)
    w = torch.randn(3, 4)
    expected = generator.synthesis.unclamped(w)
    torch.testing.assert_close(grouped.synthesis.unclamped(w), expected, rtol=1e-4, atol=1e-4)


def test_every_variant_trains_an_epoch_a_round_with_r1_once(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def penalty(logits: Tensor, images: Tensor) -> Tensor:
        calls.append(1)
        return r1_penalty(logits, images)

    monkeypatch.setattr("bundle.training.stylegan2_trainer.r1_penalty", penalty)
    speeds = benchmark.measure(resolution=32, batch_size=2, rounds=2)
    assert list(speeds) == [variant.name for variant in benchmark.VARIANTS]
    assert [len(rounds) for rounds in speeds.values()] == [2, 2, 2, 2]
    assert len(calls) == 3 * 3  # of the three with R1; the round that warms up included
    assert all(speed.wall > 0 and speed.cpu > 0 for rounds in speeds.values() for speed in rounds)


def test_r1_has_the_share_that_its_interval_gives_it(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = benchmark.Stopwatch(benchmark._trainer(benchmark.VARIANTS[0], 32, 2), 2)
    ticks = iter([0.0, 32.0, 40.0, 42.0, 50.0, 52.0])  # 16 seconds an image with R1, 1 without
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(ticks))
    assert watch.round().wall == pytest.approx((1 * 16.0 + 15 * 1.0) / 16)


def test_table() -> None:
    fast = [Speed(0.02, 0.04), Speed(0.01, 0.02), Speed(0.04, 0.05)]
    lines = table({"fast": fast, "slow": [Speed(3 * x.wall, 2 * x.cpu) for x in fast]}).splitlines()
    assert lines[2:] == [
        "| fast | 50.0 (25.0-100.0) | 40.0 (20.0-50.0) | 1.00 | 1.00 |",
        "| slow | 16.7 (8.3-33.3) | 80.0 (40.0-100.0) | 3.00 | 2.00 |",
    ]


def test_command(small: None, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark_training.main(["--rounds", "1", "--resolution", "32", "--batch_size", "2"])
    shown = capsys.readouterr().out
    for words in ("32 px, batches of 2, 1 rounds", f"PyTorch {torch.__version__}", "threads", "grouped convolutions"):
        assert words in shown


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--resolution", "63"], ["--batchsize", "2"]])
def test_impossible_options_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        benchmark_training.main(arguments)
    assert refused.value.code == 2
    assert arguments[0] in capsys.readouterr().err
