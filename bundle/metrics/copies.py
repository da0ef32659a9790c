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

__all__ = ["HARD_COPIES", "PERCENTILE", "PLANTED_CHANGES", "copy_threshold"]

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


def _blend(share: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda members, hosts: share * members + (1.0 - share) * hosts


def _pasted(rows: tuple[float, float], columns: tuple[float, float]) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns a function that pastes a rectangle, given in shares of the height and of the width, into hosts."""

    def paste(members: Tensor, hosts: Tensor) -> Tensor:
        height, width = members.shape[-2:]
        mixed = hosts.clone()
        down = slice(round(rows[0] * height), round(rows[1] * height))
        across = slice(round(columns[0] * width), round(columns[1] * width))
        mixed[..., down, across] = members[..., down, across]
        return mixed

    return paste


#: Copies of kinds that no network of the audit was trained on: functions of training images and of as many hosts, other
#: people's images that are not training images, both [N, C, H, W] in [-1, 1]; the result is to be clamped to [-1, 1].
HARD_COPIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{f"blended, {share:.0%} of it": _blend(share) for share in (0.9, 0.8, 0.7, 0.6, 0.5)},
    "left half in another image": _pasted((0.0, 1.0), (0.0, 0.5)),
    "lower half in another image": _pasted((0.5, 1.0), (0.0, 1.0)),
    "upper left quarter in another image": _pasted((0.0, 0.5), (0.0, 0.5)),
    "middle quarter in another image": _pasted((0.25, 0.75), (0.25, 0.75)),
    **{
        f"bent by {share:.1%} of the side": lambda members, hosts, share=share: changes.elastic(members, share)  # type: ignore[misc]
        for share in (0.008, 0.016, 0.023)
    },
    "blurred": lambda members, hosts: changes.blur(members, 0.015),
    "sharpened": lambda members, hosts: 2.0 * members - changes.blur(members, 0.015),
    "at half the resolution": lambda members, hosts: changes.coarse(members, 2),
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
