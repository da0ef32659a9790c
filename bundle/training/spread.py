# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Calibration of the spread of a generator's latents, at which its images vary as much as real ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from scipy.optimize import root_scalar
from torch import Tensor

from bundle.networks.sampling import sample_images, sample_z
from bundle.networks.stylegan2 import Generator

__all__ = ["SPREADS", "calibrate_spread"]

#: Smallest and largest calibrated spread.
SPREADS = (0.5, 2.0)
# Tolerance of the calibration: a few hundred samples do not determine the variety more precisely.
_TOLERANCE = 0.01
_MEAN_SAMPLES = 10_000


@torch.no_grad()
def calibrate_spread(
    generator: Generator,
    variety: Sequence[float],
    measure: Callable[[Tensor], float],
    n_samples: int = 200,
    seed: int = 0,
) -> None:
    """Sets the mean and the spread of every class of the mapping network, see `MappingNetwork`.

    Averaging a generator over its training, and a discriminator that sees few images at a time, both make samples
    cluster around the typical image of their class, where training images lie too. A generator that varies too much
    gets a spread below 1.

    Args:
        generator: generator whose mapping network is changed in place.
        variety: variety of the real images of each class, in the unit of ``measure``.
        measure: returns the variety of images [N, C, H, W] in [-1, 1], such as their mean pairwise LPIPS.
        n_samples: samples per class whose variety is measured.
        seed: random seed of their latents.
    """
    mapping = generator.mapping
    device = mapping.mean.device
    z = sample_z(range(_MEAN_SAMPLES), generator.z_dim, seed).to(device)
    for value in range(generator.num_classes):
        label = torch.full((_MEAN_SAMPLES,), value, device=device)
        mapping.mean[value] = mapping.unspread(z, label).mean(dim=0)

        def excess(spread: float, value: int = value, label: Tensor = label) -> float:
            mapping.spread[value] = spread
            samples = sample_images(generator, z[:n_samples], label[:n_samples])
            return measure(samples) - variety[value]

        ends = [excess(spread) for spread in SPREADS]
        if ends[0] < 0.0 < ends[1]:
            spread = float(root_scalar(excess, bracket=SPREADS, xtol=_TOLERANCE).root)
        else:  # no solution in range: the nearer bound
            spread = SPREADS[0] if ends[0] >= 0.0 else SPREADS[1]
        mapping.spread[value] = spread
