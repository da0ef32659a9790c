# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Centroids of clusters of patients, by LACA or k-SALSA, and pairs of them as the ends of paths."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import ignite.distributed as idist
import torch
from torch import Tensor

from bundle.files import content_digest, private_folder, sweep_temporary
from bundle.latent.ksalsa import KSalsa, KSalsaSettings
from bundle.latent.ksame import Cluster
from bundle.latent.partners import number_of_pairs, partners
from bundle.latent.training_clusters import TrainingClusters
from bundle.networks.model_set import ModelSet
from bundle.networks.realism import RealismJudge
from bundle.steps import Step, StepEngine, Steps, Tensors

__all__ = ["METHODS", "CentroidPairs", "open_centroids"]

#: LACA (Pennisi et al., DeCaF 2022): the mean latent of a cluster. k-SALSA: see `bundle.latent.ksalsa`.
METHODS = ("laca", "ksalsa")
# Folder of the centroids that k-SALSA has moved, in the private folder, and how many are moved at once.
FOLDER, AT_ONCE = "centroids", 8


class CentroidPairs:
    """Ends of paths: pairs of centroids of one class, in the order of `bundle.latent.partners.partners`.

    Args:
        clusters: clusters of the training patients.
        method: one of `METHODS`.
        settings: what k-SALSA depends on.
        models: ``generator`` and ``realism_guide``.
        output_dir: folder in whose subfolder ``private`` k-SALSA keeps the centroids that it has moved.
        seed: random seed of the order of the pairs.
    """

    def __init__(
        self,
        clusters: TrainingClusters,
        method: str,
        settings: KSalsaSettings,
        models: ModelSet,
        output_dir: str | os.PathLike[str],
        seed: int,
    ) -> None:
        self.clusters, self.method, self.settings, self.models, self.seed = clusters, method, settings, models, seed
        self.folder = Path(output_dir) / "private" / FOLDER
        self._centroids: dict[int, Tensor] = {}
        # The pairs of each class that were asked for so far, and the source of more.
        self._pairs: dict[int, list[tuple[int, int]]] = {}
        self._more: dict[int, Iterator[tuple[int, int]]] = {}

    def make(self) -> None:
        """Makes the centroids, and the pairs anew; those that an earlier run has moved by k-SALSA are read.

        In a distributed run, the first process moves them, and the others wait and read them.
        """
        if self.method == "ksalsa":
            self._centroids = self._moved()
        else:
            self._centroids = {label: self.clusters.centroids(label) for label in self.clusters.images}
        self._pairs = {label: [] for label in self._centroids}
        self._more = {label: partners(points, self.seed, label) for label, points in self._centroids.items()}

    def __call__(self, pairs: Sequence[int], label: int) -> Tensor:
        """Returns the ends of pairs of one class.

        Args:
            pairs: indices of the pairs within the class. Blocks are of one size, so the last one of a class may ask for
                more pairs than there are: it gets the first ones again, and `bundle.cohort.ledger` takes none of these.
            label: class of all pairs.

        Returns:
            w [P, 2, w_dim].
        """
        points, found = self._centroids[label], self._pairs[label]
        wanted = [pair % number_of_pairs(len(points)) for pair in pairs]
        found += islice(self._more[label], max(0, max(wanted) + 1 - len(found)))
        return points[torch.tensor([found[pair] for pair in wanted])]

    def _moved(self) -> dict[int, Tensor]:
        judge = self.models.networks["realism_guide"]
        assert isinstance(judge, RealismJudge)
        infos = self.models.infos
        origin = [infos[name]["sha256"] for name in ("generator", "realism_guide")]
        depends = [asdict(self.settings), self.clusters.k, self.clusters.latents_sha256, origin, AT_ONCE]
        folder = self.folder / content_digest(depends)
        ksalsa = KSalsa(self.models.generator, judge, self.settings)
        steps = {
            label: [
                _step(Steps(folder), ksalsa, self.clusters, label, range(first, first + AT_ONCE))
                for first in range(0, len(self.clusters.of_class(label)), AT_ONCE)
            ]
            for label in self.clusters.images
        }
        if idist.get_rank() == 0:
            sweep_temporary(private_folder(folder))
            engine = StepEngine("k-SALSA")
            engine.steps = [step for of_class in steps.values() for step in of_class]
            engine.run()
        idist.barrier()
        return {label: torch.cat([step.result()["w"] for step in of_class]) for label, of_class in steps.items()}


def _step(steps: Steps, ksalsa: KSalsa, clusters: TrainingClusters, label: int, places: range) -> Step:
    """Returns the step that moves the centroids of some of a class's clusters."""
    chosen: list[Cluster] = clusters.of_class(label)[places.start : places.stop]

    def compute() -> Tensors:
        members = [clusters.w[list(cluster.records)] for cluster in chosen]
        start = clusters.centroids(label)[places.start : places.stop]
        return {"w": ksalsa(label, start, members, [clusters.weights(cluster) for cluster in chosen])}

    return steps.step(f"class_{label}_{places.start:05d}", float(len(chosen)), compute)


def open_centroids(
    clusters: TrainingClusters | None,
    method: str,
    settings: KSalsaSettings,
    models: ModelSet,
    output_dir: str | os.PathLike[str],
    seed: int,
) -> CentroidPairs | None:
    """Returns the ends of paths between centroids, see `CentroidPairs`; None without clusters."""
    return None if clusters is None else CentroidPairs(clusters, method, settings, models, output_dir, seed)
