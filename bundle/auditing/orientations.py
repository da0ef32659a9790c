# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Detects training images that were rotated by multiples of 90 degrees, mirrored or inverted and passed as synthetic.

The audit's networks are trained on images in their original orientation and on mirror images, but not on rotated or
inverted ones. Such copies are detected by correlating the grey levels of each image, in all 16 variants, with those of
the training images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from bundle.figures import from_uint8

__all__ = ["ORIENTATIONS", "UPRIGHT", "TransformedCopies", "find_transformed_copies"]

#: Names of the orientations that the audit's networks are trained on: the original and its mirror image.
UPRIGHT = ("upright", "mirrored")
# Side in pixels at which images are correlated; it is small, so that noise and compression have little effect.
SIDE = 32
# Number of images that are correlated at a time.
BLOCK = 500
#: An orientation can be reported as the cohort's only if at most this share of held-out images matches better in it.
AMBIGUOUS = 0.05


def _orientation(quarters: int, mirrored: bool, inverted: bool) -> Callable[[Tensor], Tensor]:
    def apply(images: Tensor) -> Tensor:
        rotated = torch.rot90(images, quarters, (-2, -1))
        rotated = rotated.flip(-1) if mirrored else rotated
        return -rotated if inverted else rotated

    return apply


def _name(quarters: int, mirrored: bool, inverted: bool) -> str:
    words = ["inverted"] * inverted + [f"rotated by {90 * quarters} degrees"] * (quarters > 0) + ["mirrored"] * mirrored
    return ", ".join(words) or UPRIGHT[0]


#: The eight symmetries of a square and their negatives, as functions of images [N, C, H, W] in [-1, 1].
ORIENTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    _name(*case): _orientation(*case)
    for case in ((q, m, i) for i in (False, True) for m in (False, True) for q in range(4))
}


@dataclass(frozen=True)
class TransformedCopies:
    """The result of the search.

    Attributes:
        copies: number of images that are a training image in an orientation other than `UPRIGHT`.
        orientation: orientation other than its own in which most of the cohort matches real images best; empty if none.
        is_copy: which images these copies are, bool [N].
    """

    copies: int
    orientation: str
    is_copy: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool), compare=False)


def find_transformed_copies(cohort: Tensor, real: Sequence[tuple[Tensor, Tensor]]) -> TransformedCopies:
    """Correlates each image, in every orientation, with every training image.

    An image is a copy if its highest correlation is nearer to 1, that of an exact copy, than to the highest correlation
    of any held-out image in any orientation.

    Args:
        cohort: uint8 pixels [N, H, W] or [N, H, W, 3] without preprocessing, whose result depends on the orientation.
        real: pairs of training and held-out images, likewise uint8, one pair for each form in which they may have been
            copied: preprocessed and not preprocessed.
    """
    is_copy = torch.zeros(len(cohort), dtype=torch.bool)
    orientations = []
    for train, strangers in real:
        gallery = _descriptors(from_uint8(train))
        found = {name: _highest(cohort, gallery, change) for name, change in ORIENTATIONS.items()}
        known = {name: _highest(strangers, gallery, change) for name, change in ORIENTATIONS.items()}
        midway = (1.0 + max(float(values.max()) for values in known.values())) / 2
        for name in ORIENTATIONS.keys() - set(UPRIGHT):
            is_copy |= found[name] > midway
        orientations.append(_cohort_orientation(found, known))
    return TransformedCopies(int(is_copy.sum()), orientations[0] if all(orientations) else "", is_copy)


def _cohort_orientation(cohort: dict[str, Tensor], strangers: dict[str, Tensor]) -> str:
    upright = [torch.maximum(*(side[name] for name in UPRIGHT)) for side in (cohort, strangers)]
    shares = {}
    for name in ORIENTATIONS.keys() - set(UPRIGHT):
        mine, theirs = (
            float((side[name] > best).double().mean()) for side, best in zip((cohort, strangers), upright, strict=True)
        )
        if theirs <= AMBIGUOUS:
            shares[name] = mine
    most = max(sorted(shares), key=shares.__getitem__, default="")
    return most if shares.get(most, 0.0) > 0.5 else ""


def _highest(pixels: Tensor, gallery: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns the highest correlation [N] of images, transformed by ``change``, with any descriptor of the gallery."""
    blocks = (_descriptors(change(from_uint8(block))) for block in pixels.split(BLOCK))
    return torch.cat([(block @ gallery.T).amax(dim=1) for block in blocks])


def _descriptors(images: Tensor) -> Tensor:
    """Returns unit vectors [N, D] whose inner products are the correlations of the images."""
    small = F.interpolate(images, SIDE, mode="bilinear", antialias=True).flatten(1)
    return F.normalize(small - small.mean(dim=1, keepdim=True), dim=1)
