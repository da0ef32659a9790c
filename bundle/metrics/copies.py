# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The criterion by which an image counts as a copy of a training image, and the alterations that test this criterion.

It is that of Dar et al. (arXiv 2402.01054): an image is a copy if its correlation with the nearest training image, in
a contrastive embedding, exceeds a high percentile of the same correlation of held-out images.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from bundle.metrics import changes

__all__ = ["PERCENTILE", "PLANTED_CHANGES", "copy_threshold"]

#: Percentile of the validation images' correlations with their nearest training images that is the copy threshold.
PERCENTILE = 95.0

#: Alterations of the training images that are planted as copies. Each maps images [N, C, H, W] in [-1, 1] to the same
#: shape; clamp the result to [-1, 1].
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
    """Calibrates the correlation above which an image counts as a copy.

    Args:
        val: correlations [N] of the validation images with their nearest training images.

    Returns:
        The percentile `PERCENTILE` of ``val``, linearly interpolated. By construction about 5 % of other held-out
        images exceed it too, so a copy rate must be compared with theirs, not with 0.

    Raises:
        ValueError: ``val`` is empty.
    """
    if not len(val):
        raise ValueError(
            "The threshold of a copy is calibrated on val images, and the val split is empty. Give the dataset some."
        )
    return float(val.double().quantile(PERCENTILE / 100.0))
