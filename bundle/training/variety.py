# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""A loss that keeps a generator's images as various as the real ones of their class.

A discriminator sees too little variety only in what it compares across a batch, and then weakly: a generator settles
around the typical image of each class, where it is also nearest to real patients. Compare mode seeking (Mao et al.,
CVPR 2019), which pushes samples of different latents apart without end; here real images say how far.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["VarietyLoss", "class_variance"]

# Share of a batch in the running means: they reach over some fifty batches.
RATE = 0.02
# In place of a variance of 0, which reals of a class have where a batch shows one of them several times.
LEAST_VARIANCE = 1e-12


def class_variance(features: list[Tensor], members: Tensor) -> Tensor:
    """Variance of feature maps over the images of one class.

    The channels are scaled to unit length at each position, as LPIPS does (Zhang et al., CVPR 2018).

    Args:
        features: L maps [B, C_l, H_l, W_l].
        members: which images are of the class, [B] bool; at least 2.

    Returns:
        [L] fp32: unbiased variances, summed over channels and averaged over positions.
    """
    return torch.stack([F.normalize(x[members].float(), dim=1).var(dim=0).sum(dim=0).mean() for x in features])


class VarietyLoss(nn.Module):
    r"""Penalises fakes for varying less than reals of their class, in the feature maps of a frozen network.

    With S_lc the variance of map l over the images of class c in a batch (`class_variance`), and a bar for means that
    run over batches, whose few images of a class say little alone,

        L = sum_lc max(0, 1 - \bar S_lc(fake) / \bar S_lc(real)) (1 - S_lc(fake) / \bar S_lc(real)).

    The first factor is taken as a number: it is the gap that is left, and turns the loss off where there is none.

    Args:
        num_maps: L.
        num_classes: number of labels.
    """

    real: Tensor
    fake: Tensor
    weight: Tensor

    def __init__(self, num_maps: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("real", torch.zeros(num_classes, num_maps))
        self.register_buffer("fake", torch.zeros(num_classes, num_maps))
        self.register_buffer("weight", torch.zeros(num_classes))  # undoes the zeros that the means start from

    @property
    def share(self) -> float:
        """Variance of the fakes as a share of that of the reals, mean over maps and the classes seen; 1 before any."""
        seen = self.weight > 0
        return float((self.fake[seen] / self.real[seen].clamp_min(LEAST_VARIANCE)).mean()) if bool(seen.any()) else 1.0

    def forward(self, fakes: list[Tensor], reals: list[Tensor], label: Tensor) -> Tensor:
        """Returns the loss, a scalar, and lets the running means take the batch in.

        Args:
            fakes: feature maps of generated images, L of [B, C_l, H_l, W_l], taking gradients.
            reals: those of real images of the same classes.
            label: class of each image, [B]. A class with a single image in the batch does not count.
        """
        loss = torch.zeros((), device=label.device)
        for value in range(len(self.weight)):
            members = label == value
            if int(members.sum()) < 2:
                continue
            fake = class_variance(fakes, members)
            with torch.no_grad():
                self.weight[value] += RATE * (1.0 - self.weight[value])
                self.fake[value].lerp_(fake, RATE)
                self.real[value].lerp_(class_variance(reals, members), RATE)
                mean = self.real[value].clamp_min(LEAST_VARIANCE)
                real = mean / self.weight[value]
                gap = (1.0 - self.fake[value] / mean).clamp_min(0.0)
            loss = loss + (gap * (1.0 - fake / real)).sum()
        return loss
