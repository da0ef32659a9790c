# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Where the mapping network puts its samples in W.

Source: Zhu et al., "Improved StyleGAN Embedding: Where are the Good Latents?", arXiv 2012.09036 (the P_N space):
undoing the last leaky ReLU makes the distribution of w close to a Gaussian, which whitening then makes standard. The
spread that the mapping network gives its samples is undone before.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bundle.networks.sampling import sample_z
from bundle.networks.stylegan2 import Generator

__all__ = ["LatentPrior"]

SAMPLES = 10_000
# Directions in which the samples hardly vary would count without measure, so that a straight line between two samples
# would be far outside where nothing is wrong with its images. This share of the mean variance is the floor.
VARIANCE_FLOOR = 0.03


class LatentPrior(nn.Module):
    """Distance of w from the distribution of a class, in units in which the mapping's own samples have a mean of 1.

    Args:
        generator: its mapping network is sampled.
        seed: of the samples.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, generator: Generator, seed: int = 0) -> None:
        super().__init__()
        mapping = generator.mapping
        device = mapping.mean.device
        z = sample_z(range(SAMPLES), generator.z_dim, seed).to(device)
        means, whitenings = [], []
        for value in range(generator.num_classes):
            label = torch.full((SAMPLES,), value, device=device)
            with torch.no_grad():
                v = _undo_activation(mapping.unspread(z, label)).double()
            covariance = torch.cov(v.T)
            variances, directions = torch.linalg.eigh(covariance)
            floor = variances.mean() * VARIANCE_FLOOR
            means.append(v.mean(dim=0))
            whitening = directions / variances.clamp_min(floor).sqrt()
            # What the floor has taken from the samples' mean of 1 is given back.
            whitenings.append(whitening / ((v - means[-1]) @ whitening).square().mean().sqrt())
        self.mapping = mapping
        self.register_buffer("mean", torch.stack(means).float())
        self.register_buffer("whitening", torch.stack(whitenings).float())

    def forward(self, w: Tensor, label: Tensor) -> Tensor:
        """Returns |whitened w|^2 / w_dim.

        Args:
            w: latents [P, N, w_dim].
            label: class of each path, [P].

        Returns:
            [P, N]; near 1 for typical samples of the mapping network, below between them, above outside.
        """
        v = _undo_activation(self.mapping.narrowed(w, label)) - self.mean[label].unsqueeze(1)
        return torch.einsum("pnd,pde->pne", v, self.whitening[label]).square().mean(dim=2)


def _undo_activation(w: Tensor) -> Tensor:
    """Inverts the leaky ReLU of slope 0.2 (up to its constant gain, which whitening takes out)."""
    return F.leaky_relu(w, 5.0)
