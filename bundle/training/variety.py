# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""A loss that keeps a generator's images as varied as the real ones of their class.

A discriminator detects missing variety only weakly, by comparing images within a batch: a generator converges to the
typical image of each class, where it is also nearest to real patients. Compare mode seeking (Mao et al., CVPR 2019),
which pushes samples of different latents apart without limit; here real images set the limit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["VarietyLoss", "class_variance"]

# Weight of a batch in the running means, which thus cover about fifty batches.
RATE = 0.02
# Lower bound of the reals' variance, which is 0 for a class whose images in the batch are identical.
LEAST_VARIANCE = 1e-12


def class_variance(features: list[Tensor], members: Tensor) -> Tensor:
    """Returns the variance of feature maps over the images of one class.

    The channels are scaled to unit length at each position, as in LPIPS (Zhang et al., CVPR 2018).

    Args:
        features: L maps [B, C_l, H_l, W_l].
        members: mask of the images of the class, bool [B]; at least 2 are True.

    Returns:
        [L] fp32: unbiased variances, summed over channels and averaged over positions.
    """
    return torch.stack([F.normalize(x[members].float(), dim=1).var(dim=0).sum(dim=0).mean() for x in features])


class VarietyLoss(nn.Module):
    r"""Penalises fakes that vary less than reals of their class, in the feature maps of a frozen network.

    With S_lc the variance of map l over the images of class c in a batch (`class_variance`), and a bar for running
    means over batches, because the few images of a class in one batch give a noisy estimate,

        L = sum_lc max(0, 1 - \bar S_lc(fake) / \bar S_lc(real)) (1 - S_lc(fake) / \bar S_lc(real)).

    The first factor, the remaining gap, is not differentiated; it turns the loss off once the gap is closed.

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
        self.register_buffer("weight", torch.zeros(num_classes))  # corrects the bias of means that start at 0

    @property
    def share(self) -> float:
        """Variance of the fakes relative to the reals, mean over maps and classes seen; 1 before any batch."""
        seen = self.weight > 0
        return float((self.fake[seen] / self.real[seen].clamp_min(LEAST_VARIANCE)).mean()) if bool(seen.any()) else 1.0

    def forward(self, fakes: list[Tensor], reals: list[Tensor], label: Tensor) -> Tensor:
        """Updates the running means with the batch and returns the loss, a scalar.

        Args:
            fakes: feature maps of generated images, L of [B, C_l, H_l, W_l], with gradients enabled.
            reals: feature maps of real images of the same classes.
            label: class of each image, [B]. A class with a single image in the batch is skipped.
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
