# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Endless batches that depend on the seed and their own number alone, so that a training can resume anywhere."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import count

import torch
from torch.utils.data import Sampler

from bundle.training.errors import TrainingError
from bundle.training.seeds import stream_seed

__all__ = ["BalancedBatchSampler", "BatchSampler", "OtherImageSampler", "PairSampler", "ShuffledBatchSampler"]

# Random stream of the batches or epochs.
ORDER = 0


class BatchSampler(Sampler[list[int]]):
    """Endless batches, each of which depends on the seed and its own number alone.

    Args:
        n: number of images, or patients, per epoch.
        batch_size: number of images, or patients, per batch.
        seed: random seed of the batches.

    Attributes:
        start: number of the first batch, from 0; set when a run resumes.
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
        """Returns the number of full batches per epoch, at least 1."""
        return max(1, self.n // self.batch_size)

    def _random(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(stream_seed(self.seed, ORDER, number))


class BalancedBatchSampler(BatchSampler):
    """Batches with equally many images of every class.

    Args:
        labels: class of each image of the dataset.
        batch_size: images per batch.
        seed: random seed of the batches.
        splits: split of each image, or None for a single split. Within a class, all splits are sampled equally often,
            so that a few hundred extra images from another camera do not make that camera a feature of the class.

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
        """Samples a batch; if its size is no multiple of the number of classes, random classes get one image more."""
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
    """Full batches that contain every image at most once per epoch, in a new random order in every epoch.

    Args:
        n_images: images in the dataset.
        batch_size: images per batch; at most ``n_images`` are used.
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
        """Returns a batch's part of its epoch's random order."""
        epoch, place = divmod(number, len(self))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, torch.randperm(self.n, generator=self._random(epoch))
        return self._order[place * self.batch_size : (place + 1) * self.batch_size].tolist()


class PairSampler(BatchSampler):
    """Batches of pairs: an image of each of several patients, then, in the same order, another image of each.

    The two images of a patient are sampled independently and may be the same one.

    Args:
        patients: patient of each image of the dataset.
        n_pairs: pairs per batch; at most one per patient.
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
        """Samples a batch of pairs."""
        random = self._random(number)
        shown = torch.randperm(self.n, generator=random)[: self.batch_size].tolist()
        return [
            self.members[one][int(torch.randint(len(self.members[one]), (), generator=random))]
            for _ in range(2)
            for one in shown
        ]


class OtherImageSampler(PairSampler):
    """Pairs as of `PairSampler`, of which half, if possible, are two different images of a patient with several.

    Args:
        patients: patient of each image of the dataset.
        n_pairs: pairs per batch; at most one per patient.
        seed: random seed of the batches.

    Raises:
        TrainingError: there are fewer than two patients.
    """

    def __init__(self, patients: Sequence[int], n_pairs: int, seed: int) -> None:
        super().__init__(patients, n_pairs, seed)
        self.several = [members for members in self.members if len(members) > 1]
        self.single = [members for members in self.members if len(members) == 1]
        half = min(self.batch_size // 2, len(self.several))
        self.n_several = max(half, self.batch_size - len(self.single))

    def batch(self, number: int) -> list[int]:
        """Samples a batch of pairs, those of two different images first."""
        random = self._random(number)

        def some(n_all: int, n: int) -> list[int]:
            return torch.randperm(n_all, generator=random)[:n].tolist()

        several = [self.several[place] for place in some(len(self.several), self.n_several)]
        pairs = [[members[place] for place in some(len(members), 2)] for members in several]
        pairs += [self.single[place] * 2 for place in some(len(self.single), self.batch_size - self.n_several)]
        return [pair[side] for side in range(2) for pair in pairs]
