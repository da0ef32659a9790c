# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Cohorts between k-same centroids: how many images of each class there are, and what is told of the centroids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bundle.cohort.even import even_quotas
from bundle.cohort.ledger import CohortError
from bundle.latent.ksalsa import KSalsaSettings
from bundle.latent.partners import number_of_pairs
from bundle.latent.training_clusters import TrainingClusters

__all__ = ["KSameSettings", "ksame_settings"]


@dataclass(frozen=True)
class KSameSettings:
    """What a cohort between centroids depends on, and what is told of them: numbers, never whose.

    Attributes:
        k: smallest number of patients behind a centroid.
        method: how centroids are made, ``laca`` or ``ksalsa``.
        ksalsa: what k-SALSA depends on; None with LACA.
        latents_sha256: SHA-256 of the file of latents.
        images: number of images of each class, by name.
        centroids: number of centroids of each class, by name.
        fewest_patients: smallest number of patients behind the two ends of a path, at least 2 k.
    """

    k: int
    method: str
    ksalsa: KSalsaSettings | None
    latents_sha256: str
    images: dict[str, int]
    centroids: dict[str, int]
    fewest_patients: int


def ksame_settings(
    clusters: TrainingClusters | None,
    method: str,
    ksalsa: KSalsaSettings,
    n_images: int | None,
    n_points: int,
    class_names: Sequence[str],
) -> KSameSettings | None:
    """Completes and checks the options of a cohort between centroids.

    Args:
        clusters: clusters of the classes wanted; None for a cohort between random samples.
        method: see `KSameSettings`.
        ksalsa: what k-SALSA depends on.
        n_images: images in the cohort, divided evenly among the classes; None for as many of each class as there are
            training images.
        n_points: points per path, both ends included.
        class_names: name of each label.

    Returns:
        The settings; None without clusters.

    Raises:
        CohortError: the paths between all centroids of a class have fewer points than images are wanted.
    """
    if clusters is None:
        return None
    own = {class_names[label]: number for label, number in clusters.images.items()}
    images = own if n_images is None else even_quotas(n_images, list(own))
    centroids = {class_names[label]: len(clusters.of_class(label)) for label in clusters.images}
    for name, number in images.items():
        most = number_of_pairs(centroids[name]) * (n_points - 2)
        if number > most:
            raise CohortError(
                f"{number} images of {name} are wanted, but all paths between the {centroids[name]} centroids of that "
                f"class have {most} inner points. Ask for fewer images (--n_images, divided evenly among the classes), "
                f"for more points of a path (--n_points), or for more centroids (a smaller --k)."
            )
    return KSameSettings(
        k=clusters.k,
        method=method,
        ksalsa=ksalsa if method == "ksalsa" else None,
        latents_sha256=clusters.latents_sha256,
        images=images,
        centroids=centroids,
        fewest_patients=clusters.fewest_patients(),
    )
