# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Adaptive discriminator augmentation.

Source: Karras et al., "Training Generative Adversarial Networks with Limited Data", NeurIPS 2020 (ADA).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["AdaptiveAugment"]

# Standard deviations of the random parameters, from ADA's table for continuous geometric and colour transformations,
# except the rotation: ADA rotates by any angle, but radiographs are taken upright.
LOG2_SCALE = 0.2
LOG2_ASPECT = 0.2
ROTATION = math.radians(15.0)
TRANSLATION = 0.125
BRIGHTNESS = 0.2
LOG2_CONTRAST = 0.5
# Upper limit of p; above it, augmentations leak into the generated images (ADA, section 3.1).
MOST_P = 0.8


class AdaptiveAugment(nn.Module):
    """Augments the discriminator's inputs, each transformation with probability p, and adapts p to overfitting.

    Mirroring is not included, because anatomy is not symmetric: the heart lies on one side.

    Args:
        p: initial probability of each transformation; with ``target`` None, the fixed probability.
        target: target r_t of the mean sign of the discriminator's logits on real images (ADA: 0.6), or None.
        kimg: thousands of images over which p can rise from 0 to 1 (ADA: 500).
        interval: iterations between two adjustments of p (ADA: 4).
        colour: whether to change brightness and contrast too; not suitable for images with equalised histograms, where
            these do not vary: the discriminator would accept generated images in which they do.

    Raises:
        ValueError: a value is out of its range.
    """

    p: Tensor
    sign_sum: Tensor
    seen: Tensor

    def __init__(
        self,
        p: float = 0.0,
        target: float | None = 0.6,
        kimg: float = 500.0,
        interval: int = 4,
        colour: bool = True,
    ) -> None:
        super().__init__()
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"p is a probability, {p} is not in [0, 1].")
        if target is not None and not -1.0 < target < 1.0:
            raise ValueError(f"target is a mean of signs, {target} is not in (-1, 1); None keeps p fixed.")
        if kimg <= 0 or interval < 1:
            raise ValueError(f"kimg ({kimg}) must be above 0 and interval ({interval}) at least 1.")
        self.target = target
        self.kimg = kimg
        self.interval = interval
        self.colour = colour
        self.register_buffer("p", torch.tensor(float(p)))
        self.register_buffer("sign_sum", torch.tensor(0.0))
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, images: Tensor) -> Tensor:
        """Augments images [B, C, H, W] differentiably, with torch's global random generator."""
        p = float(self.p)
        if p == 0.0:
            return images
        images = self._geometry(images.float(), p)
        return self._colour(images, p) if self.colour else images

    def update(self, real_logits: Tensor, iteration: int) -> None:
        """Accumulates the signs of the logits on real images and adjusts p every ``interval`` iterations.

        Args:
            real_logits: the discriminator's logits on (augmented) real images, [B].
            iteration: number of this iteration, from 1.
        """
        if self.target is None:
            return
        self.sign_sum += real_logits.detach().float().sign().sum()
        self.seen += real_logits.shape[0]
        if iteration % self.interval == 0:
            overfitting = float(self.sign_sum) / int(self.seen) > self.target
            step = int(self.seen) / (self.kimg * 1000.0)
            self.p.copy_((self.p + (step if overfitting else -step)).clamp(0.0, MOST_P))
            self.sign_sum.zero_()
            self.seen.zero_()

    def _geometry(self, images: Tensor, p: float) -> Tensor:
        batch, device = images.shape[0], images.device

        def draw(deviation: float) -> Tensor:
            return torch.randn(batch, device=device) * deviation * (torch.rand(batch, device=device) < p)

        scale = draw(LOG2_SCALE)
        aspect = draw(LOG2_ASPECT)
        angle = draw(ROTATION)
        moved = torch.rand(batch, device=device) < p
        shift = torch.randn(batch, 2, device=device) * TRANSLATION * moved.unsqueeze(1)
        cos, sin = torch.cos(angle), torch.sin(angle)
        stretch_x, stretch_y = torch.exp2(scale + aspect), torch.exp2(scale - aspect)
        # The matrix maps output to input coordinates, which span [-1, 1]: hence the doubled shift.
        theta = torch.stack(
            [
                torch.stack([cos * stretch_x, -sin * stretch_x, 2.0 * shift[:, 0]], dim=1),
                torch.stack([sin * stretch_y, cos * stretch_y, 2.0 * shift[:, 1]], dim=1),
            ],
            dim=1,
        )
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

    def _colour(self, images: Tensor, p: float) -> Tensor:
        shape = (images.shape[0], 1, 1, 1)
        device = images.device
        brightness = torch.randn(shape, device=device) * BRIGHTNESS * (torch.rand(shape, device=device) < p)
        contrast = torch.exp2(
            torch.randn(shape, device=device) * LOG2_CONTRAST * (torch.rand(shape, device=device) < p)
        )
        return (images + brightness) * contrast
