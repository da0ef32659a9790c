# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Samples latents z, each of which depends on the seed and its index only, and generates images from latents."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from bundle.networks.stylegan2 import Generator
from bundle.precision import full_fp32

__all__ = ["fixed_latents", "sample_images", "sample_z"]


def sample_z(indices: Iterable[int], z_dim: int, seed: int) -> Tensor:
    """Draws one z ~ N(0, I) for each index, independent of the other indices and their order.

    NumPy's random numbers are used, since PyTorch's would repeat the initial weights of a generator that was built with
    the same seed, and images of such latents differ from each other more than those of independent latents.

    Args:
        indices: indices of the latents, each at least 0.
        z_dim: length of z.
        seed: random seed, at least 0.

    Returns:
        Latents [N, z_dim], float32.
    """
    rows = [np.random.default_rng((seed, index)).standard_normal(z_dim, dtype=np.float32) for index in indices]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, z_dim)


def fixed_latents(n: int, z_dim: int, num_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns z [n, z_dim] ~ N(0, I) and labels [n], cycling through the classes, as a function of the arguments."""
    return sample_z(range(n), z_dim, seed), torch.arange(n) % num_classes


@torch.no_grad()
@full_fp32()
def sample_images(generator: Generator, z: Tensor, label: Tensor, batch_size: int = 64) -> Tensor:
    """Generates images in fp32, in batches.

    Args:
        generator: generator, on any device.
        z: latents z ~ N(0, I), [N, z_dim].
        label: labels [N], int64.
        batch_size: number of images that are synthesised at a time.

    Returns:
        Images [N, C, H, W] in [-1, 1], on the CPU.
    """
    device = next(generator.parameters()).device
    w = generator.mapping(z.to(device), label.to(device))
    return torch.cat([generator.synthesis(part).cpu() for part in w.split(batch_size)])
