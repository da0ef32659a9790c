# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Trajectories of walks: all steps, latents to learn from, and the agreement of guides and students along them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial

import torch
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm

from bundle.latent.pairs import pair_latents
from bundle.networks.model_set import ModelSet
from bundle.networks.stylegan2 import Generator
from bundle.walk.guides import Guides, ImageGuides
from bundle.walk.inferer import PlanWalkInferer
from bundle.walk.objective import class_cross_entropy, identity_divergence

__all__ = ["NewWalk", "agreement", "trajectories", "visited_latents", "visits"]

#: `PlanWalkInferer` with prior, objective and settings bound; called with ``guides``, ``n_points`` and ``on_step``.
NewWalk = partial[PlanWalkInferer]

# Paths of a class per batch, and points per path.
PAIRS, POINTS = 32, 10
# For comparing guides and students: walks of each class, and steps between two evaluations of the guides.
TRIAL_PAIRS, TRIAL_STRIDE = 16, 6
# Points per call of the guides: few enough that the activations fit into a core's cache.
AT_ONCE = 8


def trajectories(
    new_walk: NewWalk, guides: Guides, generator: Generator, pairs: range, label: int, seed: int, n_points: int
) -> Tensor:
    """Walks pairs of one class and records the inner points at every step.

    Args:
        new_walk: factory of the inferer.
        guides: guides of the walk.
        generator: G.
        pairs: indices of the pairs of end points.
        label: class of the pairs.
        seed: random seed of the end points.
        n_points: points per path.

    Returns:
        Inner points [S + 1, P, n_points - 2, w_dim]: before each of S steps, and at the end.
    """
    device = next(generator.parameters()).device
    z = pair_latents(pairs, label, generator.z_dim, generator.num_classes, seed).to(device)
    steps: list[Tensor] = []
    inferer = new_walk(guides=guides, n_points=n_points, on_step=lambda points: steps.append(points.clone()))
    path = inferer(z, generator, torch.full((len(pairs),), label, device=device))
    return torch.stack([*steps, path["w"][:, 1:-1]])


def visits(n_latents: int) -> tuple[int, int]:
    """Returns how many blocks of walks visit at least ``n_latents`` points, and how many points these visit."""
    of_a_block = 2 * PAIRS * (POINTS - 2)
    blocks = -(-n_latents // of_a_block)
    return blocks, blocks * of_a_block


def visited_latents(new_walk: NewWalk, guides: Guides, generator: Generator, n_latents: int, seed: int) -> Tensor:
    """Collects latents that walks visit: for each moving point the last position and the position at a random step.

    Args:
        new_walk: factory of the inferer.
        guides: guides of the walk.
        generator: G.
        n_latents: smallest number of latents to collect.
        seed: random seed of the end points and of the chosen steps.

    Returns:
        w [N, w_dim], on the CPU.
    """
    classes = generator.num_classes
    random = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    blocks, _ = visits(n_latents)
    for block in tqdm(range(blocks), desc="walking on the students", unit="block", mininterval=5.0):
        pairs = range(block // classes * PAIRS, (block // classes + 1) * PAIRS)
        steps = trajectories(new_walk, guides, generator, pairs, block % classes, seed, POINTS).cpu()
        chosen = torch.randint(0, len(steps), steps.shape[1:3], generator=random)
        somewhere = steps.gather(0, chosen[None, :, :, None].expand(1, -1, -1, steps.shape[3]))[0]
        found += [steps[-1].flatten(0, 1), somewhere.flatten(0, 1)]
    return torch.cat(found)


@torch.no_grad()
def _asked(guides: Guides, points: Tensor, label: int) -> tuple[Tensor, Tensor]:
    """Returns identity divergence and class cross-entropy at points [..., w_dim] of one class, each [...]."""
    answers = [guides(part) for part in points.flatten(0, -2).split(AT_ONCE)]
    identity, classes, _ = (torch.cat(parts) for parts in zip(*answers, strict=True))
    target = torch.tensor([label], device=points.device)
    divergence, entropy = identity_divergence(identity), class_cross_entropy(classes.unsqueeze(0), target)[0]
    return divergence.view(points.shape[:-1]).cpu(), entropy.view(points.shape[:-1]).cpu()


def agreement(new_walk: NewWalk, students: Guides, models: ModelSet, seed: int) -> dict[str, float]:
    """Walks between pairs not used in training and compares the students' outputs with the guides' along the way.

    Args:
        new_walk: factory of the inferer.
        students: latent guides that steer the walks.
        models: generator and guides.
        seed: random seed of the end points.

    Returns:
        Spearman's ``rank_correlation`` of the identity divergence over every sixth step of all walks, its median over
        paths ``rank_correlation_of_a_path``, and ``rank_correlation_class`` of the class cross-entropy. Means over
        points in nats: ``identity_divergence_linear`` (straight paths), ``identity_divergence`` (walked paths) and
        ``identity_divergence_promised`` (walked paths, according to the students).
    """
    judge = ImageGuides(models.generator, models.networks["identity_guide"], models.networks["class_guide"], amp=False)
    answers: list[list[Tensor]] = [[], [], [], []]
    for label in range(models.generator.num_classes):
        steps = trajectories(new_walk, students, models.generator, range(TRIAL_PAIRS), label, seed, POINTS)
        steps = steps[[*range(0, len(steps) - 1, TRIAL_STRIDE), len(steps) - 1]]
        for kept, answer in zip(answers, (*_asked(judge, steps, label), *_asked(students, steps, label)), strict=True):
            kept.append(answer)
    # One entry per class, because the walks of different classes may take different numbers of steps.
    divergence, entropy, promised, promised_entropy = answers
    of_paths = [
        spearmanr(guide[:, path].flatten(), student[:, path].flatten()).statistic
        for guide, student in zip(divergence, promised, strict=True)
        for path in range(guide.shape[1])
    ]
    return {
        "rank_correlation": _correlation(divergence, promised),
        "rank_correlation_of_a_path": statistics.median(of_paths),
        "rank_correlation_class": _correlation(entropy, promised_entropy),
        "identity_divergence_linear": _mean_at(0, divergence),
        "identity_divergence": _mean_at(-1, divergence),
        "identity_divergence_promised": _mean_at(-1, promised),
    }


def _correlation(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Returns Spearman's rank correlation over the values of all classes."""
    return float(spearmanr(*(torch.cat([part.flatten() for part in parts]) for parts in (first, second))).statistic)


def _mean_at(step: int, values: Sequence[Tensor]) -> float:
    """Returns the mean at one step of values [steps, P, n], one tensor per class."""
    return float(torch.stack([part[step] for part in values]).mean())
