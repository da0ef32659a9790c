# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Endless batches that depend on the seed and their own number alone, so that a training can be resumed anywhere."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import count

import torch
from torch.utils.data import Sampler

from bundle.training.errors import TrainingError
from bundle.training.seeds import stream_seed

__all__ = ["BalancedBatchSampler", "BatchSampler", "PairSampler", "ShuffledBatchSampler"]

# Stream of random numbers that each batch, or epoch, has of its own.
ORDER = 0


class BatchSampler(Sampler[list[int]]):
    """Endless batches, each of which depends on the seed and its own number alone.

    Args:
        n: images, or patients, that an epoch shows.
        batch_size: how many of them a batch shows.
        seed: random seed of the batches.

    Attributes:
        start: number of the first batch, from 0: a resumed run sets it.
    """

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        self.n = n
        self.batch_size = batch_size
        self.seed = seed
        self.start = 0

    @abstractmethod
    def batch(self, number: int) -> list[int]:
        """Returns the indices of one batch."""

    def __iter__(self) -> Iterator[list[int]]:
        return map(self.batch, count(self.start))

    def __len__(self) -> int:
        """Number of full batches in an epoch, at least 1."""
        return max(1, self.n // self.batch_size)

    def _random(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(stream_seed(self.seed, ORDER, number))


class BalancedBatchSampler(BatchSampler):
    """Batches with every class in equal number.

    Args:
        labels: class of each image of the dataset.
        batch_size: images in a batch.
        seed: random seed of the batches.
        splits: split of each image. Within a class all splits are drawn from equally often: a few hundred further
            images of another camera do not make that camera a mark of the class. None: all images are of one.

    Raises:
        ValueError: there are no images.
    """

    def __init__(self, labels: Sequence[int], batch_size: int, seed: int, splits: Sequence[str] | None = None) -> None:
        if not labels:
            raise ValueError("There is no image to draw batches from. Check the split of the dataset.")
        super().__init__(len(labels), batch_size, seed)
        pools: dict[int, dict[str, list[int]]] = {}
        for i, label in enumerate(labels):
            pools.setdefault(label, {}).setdefault(splits[i] if splits else "", []).append(i)
        self.pools = [[pools[label][split] for split in sorted(pools[label])] for label in sorted(pools)]

    def batch(self, number: int) -> list[int]:
        """Draws a batch; classes that it cannot hold in equal number take turns at random."""
        random = self._random(number)
        turn = self._draw(len(self.pools), random)
        batch = []
        for i in range(self.batch_size):
            pools = self.pools[(turn + i) % len(self.pools)]
            members = pools[self._draw(len(pools), random)]
            batch.append(members[self._draw(len(members), random)])
        return batch

    @staticmethod
    def _draw(n: int, random: torch.Generator) -> int:
        return int(torch.randint(n, (), generator=random)) if n > 1 else 0


class ShuffledBatchSampler(BatchSampler):
    """Batches of full size that show every image once in an epoch; the images left over come in another epoch.

    Args:
        n_images: images in the dataset.
        batch_size: images in a batch; at most ``n_images`` are taken.
        seed: random seed of the order.

    Raises:
        TrainingError: there are no images.
    """

    def __init__(self, n_images: int, batch_size: int, seed: int) -> None:
        if n_images < 1:
            raise TrainingError("There is no image to train on. Check the train split of the dataset.")
        super().__init__(n_images, min(batch_size, n_images), seed)
        self._epoch = -1
        self._order = torch.empty(0)

    def batch(self, number: int) -> list[int]:
        """Returns the part of its epoch's order that a batch shows."""
        epoch, place = divmod(number, len(self))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, torch.randperm(self.n, generator=self._random(epoch))
        return self._order[place * self.batch_size : (place + 1) * self.batch_size].tolist()


class PairSampler(BatchSampler):
    """Batches of pairs: images of different patients, then, in the same order, an image of each once more.

    A patient with several images is shown by any two of them, else by the same image twice.

    Args:
        patients: whose image each one of the dataset is.
        n_pairs: pairs in a batch; at most one for each patient.
        seed: random seed of the batches.

    Raises:
        TrainingError: there are fewer than two patients.
    """

    def __init__(self, patients: Sequence[int], n_pairs: int, seed: int) -> None:
        self.members = [[i for i, other in enumerate(patients) if other == one] for one in sorted(set(patients))]
        n = len(self.members)
        if n < 2:
            raise TrainingError(
                f"The audit's networks tell patients apart and need at least 2 in train; the dataset has {n}."
            )
        super().__init__(n, min(n_pairs, n), seed)

    def batch(self, number: int) -> list[int]:
        """Draws a batch of pairs."""
        random = self._random(number)
        shown = torch.randperm(self.n, generator=random)[: self.batch_size].tolist()
        return [
            self.members[one][int(torch.randint(len(self.members[one]), (), generator=random))]
            for _ in range(2)
            for one in shown
        ]
