# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""When an image counts as a copy of a real one, and the changes by which copies are disguised to try that rule.

The rule is that of Dar et al. (arXiv 2402.01054): the correlation of an image with the nearest training image, in an
embedding made for it, above what all but a few held-out images reach.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from bundle.metrics import changes

__all__ = ["PERCENTILE", "PLANTED_CHANGES", "copy_threshold"]

#: Of the val images' correlations with their nearest training images: the threshold above which an image is a copy.
PERCENTILE = 95.0

#: What is done to training images that are planted as copies, each of images [N, C, H, W] in [-1, 1]; the result is to
#: be clamped to [-1, 1].
PLANTED_CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "mirrored": lambda images: images.flip(-1),
    "rotated by 10 degrees": lambda images: changes.rotate(images, 10.0),
    "rotated by -10 degrees": lambda images: changes.rotate(images, -10.0),
    "shifted by 8 %": lambda images: changes.shift(images, 0.08, -0.08),
    "exposure, gamma 0.6": lambda images: changes.gamma(images, 0.6),
    "exposure, gamma 1.6": lambda images: changes.gamma(images, 1.6),
    "brighter by 0.25": lambda images: images + 0.25,
    "noise of 0.1": lambda images: changes.noise(images, 0.1),
    "JPEG, quality 20": lambda images: changes.jpeg(images, 20),
    "cropped by 10 % at each side": lambda images: changes.resize(images, 1.25),
    "mirrored, rotated, cropped, darker and noisy": lambda images: changes.noise(
        changes.gamma(changes.resize(changes.rotate(images.flip(-1), 7.0), 1.15), 1.3), 0.06
    ),
}


def copy_threshold(val: Tensor) -> float:
    """Calibrates above which correlation an image counts as a copy.

    Args:
        val: correlations [N] of held-out images, which serve for calibration alone, with their nearest training images.

    Returns:
        Their percentile `PERCENTILE`, linearly interpolated. By construction, about the rest of other held-out images
        lie above it too: compare rates, never expect none.

    Raises:
        ValueError: there are no images.
    """
    if not len(val):
        raise ValueError(
            "The threshold of a copy is calibrated on val images, and the val split is empty. Give the dataset some."
        )
    return float(val.double().quantile(PERCENTILE / 100.0))
