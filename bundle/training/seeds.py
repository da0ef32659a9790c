# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Seeds of independent random streams derived from one seed."""

from __future__ import annotations

import numpy as np

__all__ = ["stream_seed"]


def stream_seed(seed: int, *numbers: int) -> int:
    """Derives a seed for torch from the run's seed and the numbers of a stream.

    PyTorch's CPU generator silently ignores all but the lower 32 bits of a seed, so seed and stream numbers cannot
    simply be packed into 64 bits.

    Args:
        seed: random seed of the run, at least 0.
        *numbers: identification of the stream, each at least 0; for example purpose and iteration.

    Returns:
        A whole number below 2^32.
    """
    return int(np.random.SeedSequence((seed, *numbers)).generate_state(1)[0])
