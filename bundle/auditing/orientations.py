# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Copies in disguise: training images that were turned, mirrored or inverted before they were given as synthetic.

The audit's networks know images as they lie in their files, and their mirror images; of a negative, or of an image on
its side, they know nothing. Such copies are sought by plain correlation of the grey levels, which a quarter turn and an
inversion leave as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bundle.figures import from_uint8

__all__ = ["AS_IT_LIES", "ORIENTATIONS", "Disguises", "seek_disguises"]

#: What the networks know: the image and its mirror image.
AS_IT_LIES = ("as it lies", "mirrored")
# Pixels a side at which images are correlated: coarse, so that noise and compression hide nothing.
SIDE = 32
# Images correlated at once.
BLOCK = 500
#: Share of real images that may fit better in another orientation, if a cohort that does is to be called turned.
AMBIGUOUS = 0.05


def _orientation(quarters: int, mirrored: bool, inverted: bool) -> Callable[[Tensor], Tensor]:
    def apply(images: Tensor) -> Tensor:
        turned = torch.rot90(images, quarters, (-2, -1))
        turned = turned.flip(-1) if mirrored else turned
        return -turned if inverted else turned

    return apply


def _name(quarters: int, mirrored: bool, inverted: bool) -> str:
    words = ["inverted"] * inverted + [f"turned by {90 * quarters} degrees"] * (quarters > 0) + ["mirrored"] * mirrored
    return ", ".join(words) or AS_IT_LIES[0]


#: The eight orientations of a square and their negatives, each of images [N, C, H, W] in [-1, 1].
ORIENTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    _name(*case): _orientation(*case)
    for case in ((q, m, i) for i in (False, True) for m in (False, True) for q in range(4))
}


@dataclass(frozen=True)
class Disguises:
    """What was found.

    Attributes:
        copies: number of images that are a training image in another orientation than `AS_IT_LIES`.
        lying: in which orientation most of the cohort lies, where real images do not; empty where it lies as they do.
    """

    copies: int
    lying: str


def seek_disguises(cohort: Tensor, real: Sequence[tuple[Tensor, Tensor]]) -> Disguises:
    """Correlates each image, in every orientation, with every training image.

    An image is a copy where its correlation lies nearer to 1, that of a copy, than to the highest that any stranger
    reaches in any orientation: a stranger's image that was turned reaches, turned back, what a stranger's reaches.

    Args:
        cohort: uint8 pixels [N, H, W] or [N, H, W, 3], untreated: what preprocessing does depends on the orientation.
        real: training images and strangers, the same of each, in every form that may have been disguised: as
            preprocessing leaves them, and as they lie in their files.
    """
    is_copy = torch.zeros(len(cohort), dtype=torch.bool)
    lying = []
    for train, strangers in real:
        gallery = _descriptors(from_uint8(train))
        found = {name: _highest(cohort, gallery, turn) for name, turn in ORIENTATIONS.items()}
        known = {name: _highest(strangers, gallery, turn) for name, turn in ORIENTATIONS.items()}
        midway = (1.0 + max(float(values.max()) for values in known.values())) / 2
        for name in ORIENTATIONS.keys() - set(AS_IT_LIES):
            is_copy |= found[name] > midway
        lying.append(_lying(found, known))
    return Disguises(int(is_copy.sum()), lying[0] if all(lying) else "")


def _lying(cohort: dict[str, Tensor], strangers: dict[str, Tensor]) -> str:
    upright = [torch.maximum(*(side[name] for name in AS_IT_LIES)) for side in (cohort, strangers)]
    shares = {}
    for name in ORIENTATIONS.keys() - set(AS_IT_LIES):
        mine, theirs = (
            float((side[name] > best).double().mean()) for side, best in zip((cohort, strangers), upright, strict=True)
        )
        if theirs <= AMBIGUOUS:
            shares[name] = mine
    most = max(sorted(shares), key=shares.__getitem__, default="")
    return most if shares.get(most, 0.0) > 0.5 else ""


def _highest(pixels: Tensor, gallery: Tensor, turn: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns the highest correlation [N] of images, turned, with any image of the gallery."""
    blocks = (_descriptors(turn(from_uint8(block))) for block in pixels.split(BLOCK))
    return torch.cat([(block @ gallery.T).amax(dim=1) for block in blocks])


def _descriptors(images: Tensor) -> Tensor:
    """Returns vectors [N, D] whose inner products are correlations."""
    small = F.interpolate(images, SIDE, mode="bilinear", antialias=True).flatten(1)
    return F.normalize(small - small.mean(dim=1, keepdim=True), dim=1)
