# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Selection of images no two of which are near-duplicates."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["DistinctImages"]


class DistinctImages:
    """Keeps images of one class one after the other, each only if it is no near-duplicate of a kept one.

    The result depends on the order of the images alone, so that an interrupted run finds the same images again.

    Args:
        apart: distance below which two images are near-duplicates, see `bundle.gate.gate.gate_apart`.
    """

    def __init__(self, apart: float) -> None:
        self.apart = apart
        self._kept: list[Tensor] = []

    def add(self, features: Tensor, passed: Tensor) -> Tensor:
        """Decides which points of a path are kept, those first that divide the path evenly.

        Args:
            features: features of the points in the order of the path, [N, F].
            passed: whether each passed the gate, bool [N].

        Returns:
            Whether each is kept, bool [N].
        """
        features, kept = features.float(), torch.zeros_like(passed)
        near = torch.zeros_like(passed)
        if self._kept:
            near = torch.cdist(features, torch.cat(self._kept)).amin(dim=1) < self.apart
        among = torch.cdist(features, features)
        for place in sorted(passed.nonzero().flatten().tolist(), key=_reversed_bits):
            kept[place] = not (near[place] or (among[place][kept] < self.apart).any())
        if kept.any():
            self._kept.append(features[kept])
        return kept


def _reversed_bits(place: int) -> int:
    """Orders places so that any first few of them are spread over all (van der Corput's sequence)."""
    return int(f"{place:032b}"[::-1], 2)
