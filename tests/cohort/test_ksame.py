# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from bundle.cohort.ksame import KSameSettings, ksame_settings
from bundle.cohort.ledger import CohortError
from bundle.latent.ksalsa import KSalsaSettings
from bundle.latent.ksame import cluster_patients
from bundle.latent.training_clusters import TrainingClusters


@pytest.fixture
def clusters() -> TrainingClusters:
    """20 patients of the last of three classes with two images each, and 11 of the first, in clusters of 4 to 5."""
    patients = [*(f"c{number // 2}" for number in range(40)), *(f"a{number}" for number in range(11))]
    labels = [2] * 40 + [0] * 11
    w = torch.randn(51, 3, 4, generator=torch.Generator().manual_seed(0))
    clustering = cluster_patients(w.flatten(1), patients, labels, 4)
    return TrainingClusters(4, clustering, w, tuple(patients), {0: 11, 2: 41}, "ab", 0, 1, 1, True)


def settings(
    clusters: TrainingClusters | None, n_images: int | None = None, n_points: int = 43, method: str = "laca"
) -> KSameSettings | None:
    return ksame_settings(clusters, method, KSalsaSettings(steps=7), n_images, n_points, ["a", "b", "c"])


def test_a_cohort_is_as_large_as_the_training_unless_a_number_is_asked_for(clusters: TrainingClusters) -> None:
    found = settings(clusters)
    assert found == KSameSettings(
        k=4,
        method="laca",
        ksalsa=None,
        latents_sha256="ab",
        images={"a": 11, "c": 41},
        centroids={"a": 2, "c": 5},
        fewest_patients=8,
    )
    asked = settings(clusters, n_images=7, method="ksalsa")
    assert asked is not None
    assert asked.images == {"a": 4, "c": 3}
    assert asked.ksalsa == KSalsaSettings(steps=7)
    assert settings(None) is None


def test_more_images_than_there_are_points_on_all_paths_are_refused(clusters: TrainingClusters) -> None:
    assert settings(clusters, n_images=20, n_points=12) is not None
    message = "11 images of a are wanted, but all paths between the 2 centroids of that class have 10 inner points"
    with pytest.raises(CohortError, match=message):
        settings(clusters, n_images=21, n_points=12)
