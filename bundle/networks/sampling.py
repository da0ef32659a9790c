# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Latents z, each of which depends on the seed and its own number alone, and the images of latents."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from bundle.networks.stylegan2 import Generator
from bundle.precision import full_fp32

__all__ = ["sample_images", "sample_z"]


def sample_z(indices: Iterable[int], z_dim: int, seed: int) -> Tensor:
    """Draws z ~ N(0, I), one for each number: asking for more, or in another order, changes none of them.

    They come from NumPy. From PyTorch's generator, the latents of a seed would be the very numbers that a generator
    built under that seed took for its weights: their images differ from one another more than those of other latents.

    Args:
        indices: numbers of the latents, each at least 0.
        z_dim: length of z.
        seed: at least 0.

    Returns:
        ``[N, z_dim]`` float32.
    """
    rows = [np.random.default_rng((seed, index)).standard_normal(z_dim, dtype=np.float32) for index in indices]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, z_dim)


@torch.no_grad()
@full_fp32()
def sample_images(generator: Generator, z: Tensor, label: Tensor, batch_size: int = 64) -> Tensor:
    """Generates images in fp32, a few at a time.

    Args:
        generator: on any device.
        z: ~ N(0, I), [N, z_dim].
        label: [N], int64.
        batch_size: images in memory at a time.

    Returns:
        Images [N, C, H, W] in [-1, 1], on the CPU.
    """
    device = next(generator.parameters()).device
    w = generator.mapping(z.to(device), label.to(device))
    return torch.cat([generator.synthesis(part).cpu() for part in w.split(batch_size)])
