# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The data, networks and options that all seeds of an evaluation share."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bundle.auditing.images import RealData, RealImages
from bundle.auditing.reference import Reference, reference_key
from bundle.auditing.resampling import DRAWS, patient_draws
from bundle.data import DataError, ImageData
from bundle.evaluation.arms import ARMS, LONG_ARMS, POOLS, Arm
from bundle.evaluation.membership import joined_patients
from bundle.evaluation.pools import PoolMaker
from bundle.evaluation.sources import source_pairs
from bundle.evaluation.utility import ClassifierSettings
from bundle.files import content_digest

__all__ = ["DRAW_SEED", "Setting", "evaluation_images"]

# Format version of the kept results; to be increased whenever their content changes.
FORMAT = 11
#: Seed of all bootstrap draws, equal for all arms and seeds so that these can be compared draw by draw.
DRAW_SEED = 0


def evaluation_images(data: ImageData) -> RealData:
    """Loads the real images of an evaluation.

    Args:
        data: data set, at the resolution of the generator.

    Raises:
        DataError: a split is empty.
    """
    if not data.records("test"):
        raise DataError(
            "the dataset has no test images, and an evaluation is judged on nothing else. Give dataset_dir a test "
            "split that no network has seen, by a column split in labels.csv or by folders of these names."
        )
    return RealData(data)


class Setting:
    """Real images, networks and options of an evaluation, and the folders of its results.

    Args:
        source: maker of the synthetic images.
        real: real images of all roles, from `evaluation_images`.
        networks: networks ``audit_embedding`` and ``audit_verifier``.
        infos: content of the JSON file of each network, by name.
        output_dir: folder of the evaluation; its private folder keeps the results of the steps.
        quotas: number of images of each class in an arm, by label.
        n_shadows: number of shadow models per seed; even, at least 4.
        classifier: training settings of the classifiers.
        squeezenet_file: file of the SqueezeNet 1.1 weights; None for those that torchvision downloads or has cached.
        device: device of the computation.
        external: real images of another place, on which classifiers are tested as well; None for none.

    Attributes:
        real: images of all roles, including the extra images that the generator was trained on. Distances to training
            images include the extra ones; classifiers, attacks, KID and Fréchet distance of an arm do not, since their
            class proportions differ from those of arms and test images.
        data: the data set of these images.
        train: training images without the extra ones.
        test: test images.
        source_pairs: pairs of sources within which accuracy is tested.
        arms: all arms by name; those of the published algorithm only if it is evaluated.
        long_arms: arms of long paths.
        pools: names of the pools from which the arms are selected.
        folder: folder of the results of the seeds, named after a hash of everything that they depend on.
        reference: features of and distances among the real images.
    """

    def __init__(
        self,
        source: PoolMaker,
        real: RealData,
        networks: Mapping[str, nn.Module],
        infos: Mapping[str, dict[str, Any]],
        output_dir: str | os.PathLike[str],
        quotas: dict[int, int],
        n_shadows: int,
        classifier: ClassifierSettings,
        squeezenet_file: str | os.PathLike[str] | None,
        device: str | torch.device,
        external: RealImages | None = None,
    ) -> None:
        self.external = external
        self.source, self.real, self.infos, self.quotas = source, real, infos, quotas
        self.n_shadows, self.classifier, self.device = n_shadows, classifier, torch.device(device)
        self.data: ImageData = real.data
        self.train, self.test = self.real.sides["train"].part(self.real.own), self.real.sides["test"]
        self.source_pairs = source_pairs(self.test)
        self.pools = [name for name in POOLS if source.published_pairs or POOLS[name].walk != "published"]
        self.long_arms = {name: arm for name, arm in LONG_ARMS.items() if source.published_pairs or not arm.common}
        self.arms: dict[str, Arm] = {**ARMS, **self.long_arms}
        real_key = {"format": FORMAT, **reference_key(self.real, infos, squeezenet_file)}
        key = {
            **real_key,
            "source": source.settings,
            "pairs": [source.long_pairs, source.published_pairs],
            "quotas": quotas,
            "classifier": asdict(classifier),
            "n_shadows": n_shadows,
            "sources": [record.source for record in self.test.records],
        }
        if external is not None:
            digest = hashlib.sha256(external.pixels.numpy().tobytes()).hexdigest()
            key["external"] = [digest, external.labels.tolist(), external.patients.tolist()]
        self.output_dir = Path(output_dir)
        home = self.output_dir / "private" / "evaluation"
        self.folder = home / content_digest(key)
        real_home = home / f"real-{content_digest(real_key)}"
        self.reference = Reference(self.real.sides, networks, real_home, DRAW_SEED, squeezenet_file, device)

    @cached_property
    def judged(self) -> torch.Tensor:
        """Pixels of the training and test images, which are the members and others of the attacks."""
        return torch.cat([self.train.pixels, self.test.pixels])

    @cached_property
    def judged_labels(self) -> torch.Tensor:
        """Labels of `judged`."""
        return torch.cat([self.train.labels, self.test.labels])

    @cached_property
    def judged_patients(self) -> torch.Tensor:
        """Patient numbers of `judged`."""
        return joined_patients(self.train.patients, self.test.patients)

    @cached_property
    def test_draws(self) -> list[NDArray[np.int64]]:
        """Bootstrap draws of the test images' patients."""
        return patient_draws(self.test.patients, DRAWS, DRAW_SEED)

    @cached_property
    def external_draws(self) -> list[NDArray[np.int64]]:
        """Bootstrap draws of the patients of the external images; empty if there are none."""
        return [] if self.external is None else patient_draws(self.external.patients, DRAWS, DRAW_SEED)
