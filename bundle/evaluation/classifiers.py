# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Trains the classifiers of one seed: one per arm, and the shadow models of the membership inference attack."""

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

__all__ = ["ATTACK", "JUDGE", "SeedClassifiers"]

#: The arm whose classifier predicts the classes of the other arms' images; neither walk nor gate uses this classifier.
JUDGE = "real"
# CPU-milliseconds per image and epoch of a classifier's training at 64 px.
TRAIN_MS = 5.0
# Independent random streams of a seed.
TARGET, SHADOW, HALF, ATTACK = range(4)


class SeedClassifiers:
    """Classifiers of one seed, trained or read from disk when they are first needed.

    Args:
        pools: image pools of the seed.
    """

    def __init__(self, pools: SeedPools) -> None:
        self.pools, self.setting, self.seed = pools, pools.setting, pools.seed

    def steps(self) -> Iterator[Step]:
        """Yields one step per classifier."""
        for arm in ARMS:
            yield self._arm_step(arm)
        for number in range(self.setting.n_shadows):
            yield self._shadow_step(number)

    def logits(self, arm: str) -> Tensors:
        """Returns an arm's ``logits`` [N, classes] for the images `Setting.judged`; empty if the arm is too small.

        With external images, ``external`` are the logits for these. For the arm `JUDGE`, also those for the images of
        every other arm that is large enough, by the arm's name.
        """
        return self._arm_step(arm).result()

    def shadow_logits(self) -> Tensor | None:
        """Returns the shadow models' logits [S, N, classes]; None if a half of the images lacks a class."""
        found = [self._shadow_step(number).result()["logits"] for number in range(self.setting.n_shadows)]
        return torch.stack(found) if all(len(logits) for logits in found) else None

    @cached_property
    def halves(self) -> Tensor:
        """Real images on which each shadow model is trained, bool [S, N], see `random_halves`."""
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
        # All arms use the same seed, and so the same initial weights.
        network = self._trained(*self.pools.images(arm), stream_seed(self.seed, TARGET))
        found = {"logits": classify(network, self.setting.judged, self.setting.classifier)}
        if self.setting.external is not None:
            found["external"] = classify(network, self.setting.external.pixels, self.setting.classifier)
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
