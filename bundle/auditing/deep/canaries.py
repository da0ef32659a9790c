# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Canaries: outliers that are put into a training set, and how much more the generator shows of them than of others.

Source: Carlini et al., "The Secret Sharer", arXiv 1802.08232, with a generator's nearest sample in place of a
language model's perplexity.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.auditing.deep.lira import standardised
from bundle.auditing.deep.shadows import Pool
from bundle.auditing.resampling import DRAWS, Estimate, bootstrap, estimate, mean, patient_draws
from bundle.figures import from_uint8, to_uint8

__all__ = ["REPEATS", "chance_exposures", "exposures", "inserted", "level_estimates", "make_canaries"]

#: How often the canaries of each level are in the training set; those of level 0 never are and serve as a control.
REPEATS = (0, 1, 4, 16)
# Never-inserted candidates among which a canary is ranked, as a multiple of the canaries of a level.
CANDIDATES = 10
# Standard deviation of the displacement, as a fraction of half a side; cells of the mark; its side as a fraction.
WARP, CELLS, MARK = 0.2, 4, 4
# Random ranks by which the exposure by chance is simulated.
CHANCE_DRAWS = 4000


def make_canaries(val: Pool, n_canaries: int, seed: int) -> Pool:
    """Makes canaries and candidates of the same kind: validation images, altered in a way that no patient has.

    An image is turned upside down and bent by a random smooth displacement, and a square of 4 x 4 random black and
    white cells, a quarter of the side, is put at a random place: 16 random bits that only a generator that memorised
    this very image can show. No shadow is trained on validation images otherwise.

    Args:
        val: validation images, used in turn.
        n_canaries: number of canaries of each level.
        seed: seed of the alterations.

    Returns:
        First the canaries of each level of `REPEATS`, then the candidates; the patients are those of the validation
        images.
    """
    count = (len(REPEATS) + CANDIDATES) * n_canaries
    index = torch.arange(count) % len(val.pixels)
    images, side = from_uint8(val.pixels[index]).flip(2), val.pixels.shape[1]
    random = torch.Generator().manual_seed(seed)
    coarse = WARP * torch.randn(count, 2, 4, 4, generator=random)
    moved = F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    grid = F.affine_grid(torch.eye(2, 3).expand(count, 2, 3), [count, 1, side, side], align_corners=False)
    images = F.grid_sample(images, grid + moved, padding_mode="reflection", align_corners=False)
    cell = max(1, side // MARK // CELLS)
    bits = torch.randint(2, (count, 1, CELLS, CELLS), generator=random).float() * 2 - 1
    marks = bits.repeat_interleave(cell, dim=2).repeat_interleave(cell, dim=3)
    places = torch.randint(side - cell * CELLS + 1, (count, 2), generator=random).tolist()
    for number, (top, left) in enumerate(places):
        images[number, :, top : top + cell * CELLS, left : left + cell * CELLS] = marks[number]
    return Pool(torch.from_numpy(to_uint8(images)), val.labels[index], val.patients[index])


def inserted(canaries: Pool, n_canaries: int) -> Pool:
    """Returns the canaries that are put into the training set, each as often as its level says."""
    levels = [torch.arange(n_canaries) + number * n_canaries for number in range(len(REPEATS))]
    index = torch.cat([level.repeat(times) for level, times in zip(levels, REPEATS, strict=True)])
    return canaries.part(index)


def exposures(scores: Tensor, others: Tensor, n_canaries: int) -> Tensor:
    """Computes the exposure of each canary (definition 6.1): log2 of the candidates' number less log2 of its rank.

    Some candidates are nearer than others to the samples of any generator; their mean score by generators that never
    saw one of them is therefore subtracted first.

    Args:
        scores: scores [C] of canaries and candidates by the generator with the canaries.
        others: scores [S, C] by generators without.
        n_canaries: number of canaries of each level.

    Returns:
        Exposures [levels, n_canaries] in bits.
    """
    seen = standardised(torch.cat([scores[None], others]))
    relative = seen[0] - seen[1:].mean(dim=0)
    canaries, candidates = relative.split([len(REPEATS) * n_canaries, len(relative) - len(REPEATS) * n_canaries])
    rank = 1 + (candidates[None] > canaries[:, None]).sum(dim=1)
    return (np.log2(len(candidates) + 1) - rank.double().log2()).view(len(REPEATS), n_canaries)


@cache
def chance_exposures(n_canaries: int) -> tuple[float, float, float]:
    """Returns mean, 0.5 % and 99.5 % quantile of a level's mean exposure if all ranks are random; about 1.4 bits.

    Exposures of random ranks are so skewed that the bootstrap interval of a few canaries misses their mean too often.
    """
    random, drawn = np.random.default_rng(0), []
    n = CANDIDATES * n_canaries
    for _ in range(CHANCE_DRAWS):
        places = np.sort(random.permutation(n + n_canaries)[:n_canaries])
        rank = places - np.arange(n_canaries) + 1  # among the candidates
        drawn.append(np.mean(np.log2(n + 1) - np.log2(rank)))
    low, high = np.quantile(drawn, [0.005, 0.995])
    return float(np.mean(drawn)), float(low), float(high)


def level_estimates(found: Tensor, patients: Tensor, seed: int) -> list[Estimate]:
    """Estimates the mean exposure of each level.

    Args:
        found: exposures [levels, n].
        patients: whose image each canary was made of, [levels, n].
        seed: seed of the bootstrap draws.
    """
    return [
        estimate(mean(values), bootstrap(values, patient_draws(whose, DRAWS, seed + number), mean), len(values))
        for number, (values, whose) in enumerate(zip(found, patients, strict=True))
    ]
