# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Accuracy within pairs of sources: if labels follow the source, a classifier may predict the source instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from bundle.auditing.images import RealImages
from bundle.auditing.resampling import LEAST, Estimate
from bundle.evaluation.utility import accuracy_estimates

__all__ = ["PAIR_MEASURES", "SourcePair", "pair_estimates", "source_pairs"]

#: Measures within a pair.
PAIR_MEASURES = ("accuracy", "auc")


@dataclass(frozen=True)
class SourcePair:
    """Test images of one source of one class and of one source of another class.

    Attributes:
        labels: lower and higher label.
        sources: source of the images of each label.
        images: indices [N] of the images among all test images.
        counts: number of images of each label.
    """

    labels: tuple[int, int]
    sources: tuple[str, str]
    images: Tensor
    counts: tuple[int, int]

    def key(self, number: int, measure: str) -> str:
        """Returns the name of a measure's estimate, for the pair's number."""
        return f"source_pair_{number}_{measure}"

    def content(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Returns the description of the pair for results.json."""
        classes = [class_names[label] for label in self.labels]
        return {"classes": classes, "sources": list(self.sources), "images": list(self.counts)}


def source_pairs(test: RealImages) -> list[SourcePair]:
    """Returns each pair of a source of one class and a source of another class with at least `LEAST` images a side.

    Pairs of one source come first, because they alone cannot be told apart by their source. If the data names no
    source, or the same one for all images, there is none.

    Args:
        test: test images; the source of an image is that of its record.
    """
    sources = [record.source for record in test.records]
    if len({*sources} - {None}) < 2:
        return []
    sides: dict[tuple[int, str], list[int]] = {}
    for index, (label, source) in enumerate(zip(test.labels.tolist(), sources, strict=True)):
        if source is not None and label >= 0:
            sides.setdefault((label, source), []).append(index)
    enough = sorted(side for side, images in sides.items() if len(images) >= LEAST)
    pairs = [
        SourcePair(
            (first[0], second[0]),
            (first[1], second[1]),
            torch.tensor(sides[first] + sides[second]),
            (len(sides[first]), len(sides[second])),
        )
        for first, second in combinations(enough, 2)
        if first[0] != second[0]
    ]
    return sorted(pairs, key=lambda pair: pair.sources[0] != pair.sources[1])


def pair_estimates(
    pairs: Sequence[SourcePair], logits: Tensor, labels: Tensor, draws: Sequence[NDArray[Any]]
) -> Mapping[str, Estimate]:
    """Estimates accuracy and AUC within each pair, from the logits of its two classes alone.

    Args:
        pairs: pairs from `source_pairs`.
        logits: logits [N, K] of all test images.
        labels: labels [N] of all test images.
        draws: bootstrap draws of patients, as indices into the test images.

    Returns:
        Estimates by `SourcePair.key` of each of `PAIR_MEASURES`.
    """
    figures: dict[str, Estimate] = {}
    for number, pair in enumerate(pairs):
        place = torch.full((len(labels),), -1)
        place[pair.images] = torch.arange(len(pair.images))
        within = [drawn[drawn >= 0] for drawn in (place.numpy()[draw] for draw in draws)]
        is_second = (labels[pair.images] == pair.labels[1]).long()
        found = accuracy_estimates(logits[pair.images][:, list(pair.labels)], is_second, within)
        figures |= {pair.key(number, measure): found[measure] for measure in PAIR_MEASURES}
    return figures
