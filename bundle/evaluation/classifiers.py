# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The classifiers of one seed: one for each arm, and the shadow models of the membership attack."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from bundle.evaluation.arms import ARMS
from bundle.evaluation.membership import random_halves
from bundle.evaluation.seed_pools import SeedPools
from bundle.evaluation.utility import classify, train_classifier
from bundle.steps import Step, Tensors
from bundle.training.seeds import stream_seed

__all__ = ["JUDGE", "SeedClassifiers"]

#: The arm whose classifier says what the images of the others show: neither walk nor gate has asked it.
JUDGE = "real"
# CPU-milliseconds of an image in a classifier's training at 64 px, in each epoch.
TRAIN_MS = 5.0
# Streams of random numbers of a seed.
TARGET, SHADOW, HALF = range(3)


class SeedClassifiers:
    """Classifiers of one seed, trained or read from disk when they are first asked for.

    Args:
        pools: of the same seed.
    """

    def __init__(self, pools: SeedPools) -> None:
        self.pools, self.setting, self.seed = pools, pools.setting, pools.seed

    def steps(self) -> Iterator[Step]:
        """Yields a step for each classifier."""
        for arm in ARMS:
            yield self._arm_step(arm)
        for number in range(self.setting.n_shadows):
            yield self._shadow_step(number)

    def logits(self, arm: str) -> Tensors:
        """Returns what an arm's classifier says: ``logits`` [N, classes] of the real images that are judged.

        Of the judge, also those of each other arm's images, by the arm's name. They are empty where the arm has too few
        images.
        """
        return self._arm_step(arm).result()

    def shadow_logits(self) -> Tensor | None:
        """Returns each shadow model's logits [S, N, classes]; None where a half of the images lacks a class."""
        found = [self._shadow_step(number).result()["logits"] for number in range(self.setting.n_shadows)]
        return torch.stack(found) if all(len(logits) for logits in found) else None

    @cached_property
    def halves(self) -> Tensor:
        """Which of the real images each shadow model was trained on, see `random_halves`."""
        return random_halves(self.setting.judged_patients, self.setting.n_shadows, stream_seed(self.seed, HALF))

    def _step(self, name: str, images: float, compute: Any) -> Step:
        cost = TRAIN_MS * self.setting.classifier.epochs * images
        return Step(f"{name} seed {self.seed}", cost, compute, self.pools.folder / f"{name}.pt")

    def _arm_step(self, arm: str) -> Step:
        return self._step(f"classifier_{arm}", sum(self.setting.quotas.values()), lambda: self._of_arm(arm))

    def _shadow_step(self, number: int) -> Step:
        return self._step(f"shadow_{number:02d}", len(self.setting.judged) / 2, lambda: self._shadow(number))

    def _of_arm(self, arm: str) -> Tensors:
        if self.pools.shortage(arm):
            return {"logits": torch.empty(0)}
        # The same initial weights in every arm.
        network = self._trained(*self.pools.images(arm), stream_seed(self.seed, TARGET))
        found = {"logits": classify(network, self.setting.judged, self.setting.classifier)}
        if arm == JUDGE:
            for other in ARMS:
                if other != JUDGE and not self.pools.shortage(other):
                    found[other] = classify(network, self.pools.images(other)[0], self.setting.classifier)
        return found

    def _shadow(self, number: int) -> Tensors:
        half = self.halves[number]
        pixels, labels = self.setting.judged[half], self.setting.judged_labels[half]
        if set(labels.tolist()) != set(self.setting.quotas):
            return {"logits": torch.empty(0)}
        network = self._trained(pixels, labels, stream_seed(self.seed, SHADOW, number))
        return {"logits": classify(network, self.setting.judged, self.setting.classifier)}

    def _trained(self, pixels: Tensor, labels: Tensor, seed: int) -> nn.Module:
        options: dict[str, Any] = {
            "device": self.setting.device,
            "squeezenet_file": self.setting.reference.squeezenet_file,
        }
        return train_classifier(pixels, labels, len(self.setting.quotas), self.setting.classifier, seed, **options)
