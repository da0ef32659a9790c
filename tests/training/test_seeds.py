# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from bundle.training.seeds import stream_seed


def test_every_number_counts() -> None:
    seeds = [stream_seed(seed, stream, number) for seed in range(20) for stream in range(2) for number in range(20)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert stream_seed(3, 1, 4) == stream_seed(3, 1, 4)


def test_torch_takes_all_of_it() -> None:
    draws = {float(torch.rand((), generator=torch.Generator().manual_seed(stream_seed(seed, 5)))) for seed in range(50)}
    assert len(draws) == 50
