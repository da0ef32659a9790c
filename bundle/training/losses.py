# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Losses of the GAN.

Sources: Goodfellow et al., NeurIPS 2014 (non-saturating loss); Mescheder et al., "Which Training Methods for GANs do
actually Converge?", ICML 2018 (R1); Karras et al., CVPR 2020, section 3.1 (lazy regularisation).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["discriminator_loss", "generator_loss", "lazy_adam", "r1_penalty"]


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Non-saturating loss -log sigmoid(D(G(z))), mean over logits [B] or [B, L]."""
    return F.softplus(-fake_logits).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-log sigmoid(D(x)) - log(1 - sigmoid(D(G(z)))), means over logits [B] or [B, L]."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def r1_penalty(real_logits: Tensor, real_images: Tensor) -> Tensor:
    """Squared gradient norm of the discriminator at real images, |dD(x) / dx|^2, mean over the batch.

    Args:
        real_logits: logits [B], computed from ``real_images``.
        real_images: [B, C, H, W], with gradients enabled.

    Returns:
        A differentiable scalar, which the loss weights by gamma / 2.
    """
    (gradient,) = torch.autograd.grad(real_logits.sum(), real_images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def lazy_adam(
    parameters: list[torch.nn.Parameter], lr: float, betas: tuple[float, float], interval: int | None = None
) -> torch.optim.Adam:
    """Returns an Adam optimiser, corrected for a regulariser that is evaluated only every ``interval`` iterations.

    Args:
        parameters: parameters to optimise.
        lr: learning rate before the correction.
        betas: decay rates of Adam's moments before the correction.
        interval: iterations between two evaluations of the regulariser; None if there is none.
    """
    c = 1.0 if interval is None else interval / (interval + 1.0)
    return torch.optim.Adam(parameters, lr=lr * c, betas=(betas[0] ** c, betas[1] ** c), eps=1e-8)
