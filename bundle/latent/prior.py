# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Distribution of the mapping network's samples in W, and the distance of a latent from it.

Source: Zhu et al., "Improved StyleGAN Embedding: Where are the Good Latents?", arXiv 2012.09036 (the P_N space):
inverting the last leaky ReLU makes the distribution of w close to a Gaussian, which whitening makes standard normal.
The calibrated spread of the mapping network is undone first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bundle.networks.sampling import sample_z
from bundle.networks.stylegan2 import Generator

__all__ = ["LatentPrior"]

SAMPLES = 10_000
# Lower bound of the variances, as a share of their mean. Without it, directions in which the samples hardly vary would
# dominate the distance, and a straight line between two samples would count as far outside although its images look
# normal.
VARIANCE_FLOOR = 0.03


class LatentPrior(nn.Module):
    """Squared distance of w from the distribution of a class, scaled to a mean of 1 over the mapping network's samples.

    Args:
        generator: generator whose mapping network is sampled.
        seed: random seed of these samples.
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
            # Rescaled because the variance floor lowers the samples' mean distance below 1.
            whitenings.append(whitening / ((v - means[-1]) @ whitening).square().mean().sqrt())
        self.mapping = mapping
        self.register_buffer("mean", torch.stack(means).float())
        self.register_buffer("whitening", torch.stack(whitenings).float())

    def forward(self, w: Tensor, label: Tensor) -> Tensor:
        """Returns |whitened w|^2 / w_dim.

        Args:
            w: latents, [P, N, w_dim].
            label: class of each path, [P].

        Returns:
            [P, N]; near 1 for typical samples of the mapping network, lower between samples, higher outside.
        """
        v = _undo_activation(self.mapping.narrowed(w, label)) - self.mean[label].unsqueeze(1)
        return torch.einsum("pnd,pde->pne", v, self.whitening[label]).square().mean(dim=2)


def _undo_activation(w: Tensor) -> Tensor:
    """Inverts the leaky ReLU of slope 0.2, up to its constant gain, which the whitening removes."""
    return F.leaky_relu(w, 5.0)
