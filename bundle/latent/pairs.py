# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Pairs of latent end points, in blocks of a fixed size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import IterableDataset

from bundle.latent.centroids import CentroidPairs
from bundle.networks.sampling import sample_z

__all__ = ["ENDS", "PairBlocks", "pair_latents", "pairs_per_block"]

#: Kinds of end points: random samples, and k-same centroids of the training patients.
ENDS = ("draws", "ksame")

# Points walked at once: a block holds as many pairs as fit, depending on the points per path. Larger blocks are faster,
# but waste more points where few images are wanted.
BLOCK_POINTS = {"image": 40, "latent": 160}


def pair_latents(pairs: Iterable[int], label: int, z_dim: int, num_classes: int, seed: int) -> Tensor:
    """Samples the end points of pairs of one class; those of a pair depend on its index, class and seed alone.

    Args:
        pairs: indices of the pairs within the class.
        label: class of all pairs.
        z_dim: length of z.
        num_classes: number of labels.
        seed: random seed of the cohort's end points.

    Returns:
        z [P, 2, z_dim].
    """
    numbers = [(2 * pair + end) * num_classes + label for pair in pairs for end in range(2)]
    return sample_z(numbers, z_dim, seed).view(-1, 2, z_dim)


def pairs_per_block(guides: str, n_points: int) -> int:
    """Returns how many pairs are walked at once.

    Args:
        guides: kind of guides that the walk evaluates, ``latent`` or ``image``.
        n_points: points per path.
    """
    return max(1, BLOCK_POINTS[guides] // n_points)


class PairBlocks(IterableDataset[dict[str, Any]]):
    """Yields pairs of latent end points, block by block, for as long as more are wanted.

    A block always holds ``block_size`` consecutive pairs of one class: the last bits of a network's output depend on
    the batch size, and the bits of a pair must not depend on how many pairs a run requests.

    Args:
        z_dim: length of z.
        num_classes: number of labels.
        seed: random seed of the cohort's end points.
        block_size: pairs in a block; the batch size of the data loader must be the same.
        next_block: returns the class and index of the next block, or None once there are enough; it is called after the
            previous block has been processed.
        centroids: source of end points w; None for random samples z.
    """

    def __init__(
        self,
        z_dim: int,
        num_classes: int,
        seed: int,
        block_size: int,
        next_block: Callable[[], tuple[int, int] | None],
        centroids: CentroidPairs | None = None,
    ) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.num_classes = num_classes
        self.seed = seed
        self.block_size = block_size
        self.next_block = next_block
        self.centroids = centroids

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields dictionaries of ``latent`` [2, z_dim], or [2, w_dim] of centroids, ``label`` and ``index``."""
        while (wanted := self.next_block()) is not None:
            label, block = wanted
            indices = range(block * self.block_size, (block + 1) * self.block_size)
            if self.centroids is None:
                latents = pair_latents(indices, label, self.z_dim, self.num_classes, self.seed)
            else:
                latents = self.centroids(indices, label)
            for index, latent in zip(indices, latents, strict=True):
                yield {"latent": latent, "label": label, "index": index}
