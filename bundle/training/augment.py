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

# Standard deviations of the draws. ADA's table for the continuous geometric and the colour transformations, but for
# the rotation: ADA turns an image by any angle, a radiograph taken upright gains nothing from being upside down.
LOG2_SCALE = 0.2
LOG2_ASPECT = 0.2
ROTATION = math.radians(15.0)
TRANSLATION = 0.125
BRIGHTNESS = 0.2
LOG2_CONTRAST = 0.5
# Above this, what the discriminator cannot undo begins to show in the samples (ADA, section 3.1).
MOST_P = 0.8


class AdaptiveAugment(nn.Module):
    """Augments what the discriminator sees, each transformation with probability p, and adapts p to overfitting.

    Mirror images are not among the transformations: the heart lies on one side.

    Args:
        p: probability of each transformation at the start; with ``target`` None, throughout (fixed rate).
        target: wanted mean sign of the discriminator's logits on real images, r_t (ADA: 0.6), or None.
        kimg: thousands of images in which p could rise from 0 to 1 (ADA: 500).
        interval: iterations between two adjustments (ADA: 4).
        colour: change brightness and contrast as well. Not for images that all have one histogram: what does not vary
            among them needs no augmentation, and a discriminator that sees it vary lets the generator miss it.

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
        """Augments images [B, C, H, W] differentiably, drawing from torch's global generator."""
        p = float(self.p)
        if p == 0.0:
            return images
        images = self._geometry(images.float(), p)
        return self._colour(images, p) if self.colour else images

    def update(self, real_logits: Tensor, iteration: int) -> None:
        """Counts the signs of the logits on real images and adjusts p every ``interval`` iterations.

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
        # Rows of the matrix that takes output to input coordinates, which span [-1, 1]: hence the doubled shift.
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
