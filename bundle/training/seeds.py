# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Seeds of the many streams of random numbers that one seed stands for."""

from __future__ import annotations

import numpy as np

__all__ = ["stream_seed"]


def stream_seed(seed: int, *numbers: int) -> int:
    """Mixes a seed and the numbers of a stream into a seed for torch.

    PyTorch's CPU generator takes the lower 32 bits of a seed and drops the rest without a word, so a seed and a number
    cannot stand side by side in 64.

    Args:
        seed: of the run, at least 0.
        *numbers: which stream, each at least 0; for example that of the data, of the third iteration.

    Returns:
        A whole number below 2^32.
    """
    return int(np.random.SeedSequence((seed, *numbers)).generate_state(1)[0])
