# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""k-same: clusters of at least k different patients of one class, and their centroids.

Sources: Newton, Sweeney & Malin, "Preserving Privacy by De-identifying Face Images", IEEE TKDE 17(2), 2005 (k-same);
Pennisi et al., "GAN Latent Space Manipulation and Aggregation for Federated Learning in Medical Imaging", DeCaF 2022
(LACA): images are projected into the latent space, clustered there, and each cluster is replaced by its centroid.

What is guaranteed, and checked after each clustering by `check_clusters`:

- k counts patients, not images: every centroid is the mean over at least k different patients of one class. Each of
  them weighs the same, whatever the number of images, so that no patient contributes more than 1/k of it.
- It holds for every patient who is clustered: each belongs to exactly one cluster, with all images.

What this does not say:

- It is no formal k-anonymity of a release. Generator and guides were trained on every record, so an image made from a
  centroid may show more of one patient than the centroid does.
- A point between two centroids depends on the patients of both, and which patients share a cluster depends on all.
- k patients who look alike have a centroid that looks like each of them.
- It holds for one clustering. Centroids of two clusterings, such as before and after a patient was added, can be
  subtracted from each other.
- Patients are those that the data name. Where they name none, every image counts as a patient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

__all__ = [
    "Cluster",
    "Clustering",
    "KSameError",
    "KSameInputError",
    "Patient",
    "check_clusters",
    "cluster_patients",
]

#: Identifier of a patient; within one data set all are of the same type.
Patient: TypeAlias = int | str


class KSameError(RuntimeError):
    """A clustering that breaks the guarantee; nothing that was made from it may be released."""


class KSameInputError(ValueError):
    """Latents, patients or a k that cannot be clustered; the message names the remedy."""


@dataclass(frozen=True)
class Cluster:
    """Patients of one class who are represented by one centroid. It names patients: store it on site only.

    Attributes:
        label: class of all images.
        patients: the different patients, sorted.
        records: indices of all their images among the latents that were clustered, ascending.
        centroid: mean over the patients of the mean of each patient's latents, [D].
    """

    label: int
    patients: tuple[Patient, ...]
    records: tuple[int, ...]
    centroid: Tensor


@dataclass(frozen=True)
class Clustering:
    """Clusters of all classes.

    Attributes:
        clusters: sorted by class, and within a class by their first patient.
    """

    clusters: tuple[Cluster, ...]

    @property
    def n_clusters(self) -> int:
        """Number of clusters, and so of centroids."""
        return len(self.clusters)

    @property
    def n_patients(self) -> tuple[int, ...]:
        """Number of patients behind each centroid, in the order of the clusters."""
        return tuple(len(cluster.patients) for cluster in self.clusters)


def cluster_patients(latents: Tensor, patients: Sequence[Patient], labels: Sequence[int], k: int) -> Clustering:
    """Partitions the patients of each class into clusters of k to 2k - 1 and computes their centroids.

    A class of n patients gets floor(n / k) clusters whose sizes differ by at most 1. They are found by MDAV, see
    :func:`_mdav`, in the space of the patients' mean latents. Neither clusters nor the bits of the centroids depend on
    the order of the images; the computation is in float64 on the CPU.

    Args:
        latents: latents of real images, W or flattened W+, [N, D].
        patients: patient of each image, [N]; all int or all str. Give the ``patient_id`` of the records rather than the
            identities of :class:`bundle.data.dataset.ImageData`, which are -1 for every patient of val and test.
        labels: class of each image, [N].
        k: smallest number of different patients in a cluster, at least 2.

    Returns:
        Clusters that :func:`check_clusters` has approved, with centroids of the dtype and device of ``latents``.

    Raises:
        TypeError: patients or labels are not plain integers or strings.
        KSameInputError: k is below 2, a class has fewer than k patients, a patient has images in two classes, or
            latents are absent, not finite, not floats [N, D], or not as many as patients and labels.
        KSameError: the clusters break the guarantee, by an error of this module.
    """
    _check_input(latents, patients, labels, k)
    points = latents.detach().cpu().double().numpy()
    clusters = []
    for label, records_of in sorted(_patients_of_classes(patients, labels).items()):
        if len(records_of) < k:
            raise KSameInputError(
                f"Class {label} has {len(records_of)} patients, fewer than k = {k}: no centroid of this class can "
                "stand for k patients. Give it more patients, choose a smaller k (at least 2), or leave the class out."
            )
        names = sorted(records_of)
        means = np.stack([_mean_of_images(points[records_of[name]]) for name in names])
        for members in _mdav(means, k):
            clusters.append(
                Cluster(
                    label=label,
                    patients=tuple(names[member] for member in members),
                    records=tuple(sorted(record for member in members for record in records_of[names[member]])),
                    centroid=torch.from_numpy(means[members].mean(axis=0)).to(latents),
                )
            )
    clustering = Clustering(tuple(clusters))
    check_clusters(clustering, patients, labels, k)
    return clustering


def check_clusters(clustering: Clustering, patients: Sequence[Patient], labels: Sequence[int], k: int) -> None:
    """Verifies the guarantee from the images' own patients and labels, whatever method computed the centroids.

    Args:
        clustering: clusters to verify.
        patients: patient of each image that was to be clustered, [N].
        labels: class of each image, [N].
        k: promised number of different patients in each cluster.

    Raises:
        TypeError: patients or labels are not plain integers or strings.
        KSameInputError: k is below 2, or there are not as many patients as labels.
        KSameError: an image is in no cluster or in two, a cluster has fewer than k different patients or names others
            than its images have, its images are of another class, or a patient is in two clusters.
    """
    _check_names(patients, labels, k)
    _check_records(clustering, len(patients))
    cluster_of: dict[Patient, int] = {}
    for number, cluster in enumerate(clustering.clusters):
        found = {patients[record] for record in cluster.records}
        if Counter(cluster.patients) != Counter(found):
            raise KSameError(f"Cluster {number} does not name exactly the patients of its images. Cluster anew.")
        if len(found) < k:
            raise KSameError(f"Cluster {number} holds {len(found)} different patients, not k = {k}. Cluster anew.")
        strange = {labels[record] for record in cluster.records} - {cluster.label}
        if strange:
            raise KSameError(
                f"Cluster {number} is of class {cluster.label}, but holds images of class {min(strange)}. Cluster each "
                "class on its own."
            )
        for patient in cluster.patients:
            first = cluster_of.setdefault(patient, number)
            if first != number:
                raise KSameError(f"Patient {patient!r} is in clusters {first} and {number}. Cluster whole patients.")


def _check_records(clustering: Clustering, n_records: int) -> None:
    """Raises KSameError unless every image is in exactly one cluster."""
    counts = Counter(record for cluster in clustering.clusters for record in cluster.records)
    for record in sorted(set(range(n_records)) | set(counts)):
        if not 0 <= record < n_records:
            raise KSameError(f"Image {record} is clustered, but there are only {n_records}. Pass what was clustered.")
        if counts[record] != 1:
            raise KSameError(f"Image {record} is in {counts[record]} clusters, not in 1. Cluster all images anew.")


def _check_input(latents: Tensor, patients: Sequence[Patient], labels: Sequence[int], k: int) -> None:
    _check_names(patients, labels, k)
    if latents.dim() != 2 or not latents.numel() or not latents.is_floating_point():
        raise KSameInputError(
            f"Latents must be floats [N, D] of at least one image, not {latents.dtype} {list(latents.shape)}. Give the "
            "latents of images, and flatten W+."
        )
    if len(latents) != len(patients):
        raise KSameInputError(f"There are {len(latents)} latents of {len(patients)} images. Give one for each image.")
    finite = latents.isfinite().all(dim=1)
    if not finite.all():
        image = int(finite.int().argmin())
        raise KSameInputError(f"The latent of image {image} is not finite. Project this image anew.")
    label_of: dict[Patient, int] = {}
    for patient, label in zip(patients, labels, strict=True):
        first = label_of.setdefault(patient, label)
        if first != label:
            raise KSameInputError(
                f"Patient {patient!r} has images of the classes {min(first, label)} and {max(first, label)}, and would "
                "be in two clusters. Keep the images of one class of such patients."
            )


def _check_names(patients: Sequence[Patient], labels: Sequence[int], k: int) -> None:
    if k < 2:
        raise KSameInputError(f"k = {k} hides nobody: a cluster must hold at least 2 patients. Give a k of at least 2.")
    if len(patients) != len(labels):
        raise KSameInputError(f"There are {len(patients)} patients and {len(labels)} labels. Give both for each image.")
    # Elements of tensors are equal to no other element as keys: each image would count as a patient of its own. A
    # patient named 1 and "1" would count twice.
    for what, values, types in (("patients", patients, (int, str)), ("labels", labels, (int,))):
        if not any(all(type(value) is kind for value in values) for kind in types):
            allowed = " or all ".join(kind.__name__ for kind in types)
            raise TypeError(f"The {what} must be all {allowed}. Pass tensors and arrays as {what}.tolist().")


def _patients_of_classes(patients: Sequence[Patient], labels: Sequence[int]) -> dict[int, dict[Any, list[int]]]:
    """Returns the indices of each patient's images, by class and patient."""
    # Any, since patients are sorted, and the type checker does not know that all are of one type.
    classes: dict[int, dict[Any, list[int]]] = {}
    for record, (patient, label) in enumerate(zip(patients, labels, strict=True)):
        classes.setdefault(label, {}).setdefault(patient, []).append(record)
    return classes


def _mean_of_images(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the mean [D] of a patient's latents [images, D]."""
    # The last bits of a sum depend on the order of its terms: sorting them makes it independent of the images' order.
    mean: NDArray[np.float64] = np.sort(rows, axis=0).mean(axis=0)
    return mean


def _mdav(points: NDArray[np.float64], k: int) -> list[NDArray[np.intp]]:
    """Partitions points into floor(n / k) groups of at least k whose sizes differ by at most 1.

    MDAV (maximum distance to average vector) takes whole groups off the outside of the cloud: the point farthest from
    the mean of those left, with its nearest neighbours; then the point farthest from that one, with its own; and so on.
    It is the standard microaggregation of statistical disclosure control. It was chosen because it gives the sizes by
    construction, where k-means needs repairs that may break them, has no random start, and needs O(n^2 D / k) time and
    O(n D) memory, where k-means with sizes fixed by optimal assignment needs O(n^3) and O(n^2).

    Source: Domingo-Ferrer & Torra, "Ordinal, Continuous and Heterogeneous k-Anonymity Through Microaggregation", Data
    Mining and Knowledge Discovery 11(2), 2005, after the maximum-distance method of Domingo-Ferrer & Mateo-Sanz,
    "Practical Data-Oriented Microaggregation for Statistical Disclosure Control", IEEE TKDE 14(1), 2002. There the last
    group takes the remainder of up to k - 1 points; here groups are larger where all can be, and each point that then
    remains joins another group, so that the sum of squared distances to the groups' means is smallest.

    Args:
        points: [n, D] with n >= k. Ties go to the point that stands first.
        k: smallest size.

    Returns:
        Ascending indices of each group's points; the groups are sorted by their first point, so that their order does
        not say which were outside.
    """
    n_groups = len(points) // k
    size = len(points) // n_groups
    left = np.arange(len(points))
    groups: list[NDArray[np.intp]] = []
    seed = 0
    while len(groups) < n_groups:
        origin = points[seed] if len(groups) % 2 else points[left].mean(axis=0)
        seed = left[_squared_distances(points[left], origin).argmax()]
        nearest = _squared_distances(points[left], points[seed]).argsort(kind="stable")[:size]
        groups.append(left[nearest])
        left = np.delete(left, nearest)
    if len(left):
        means = np.stack([points[group].mean(axis=0) for group in groups])
        chosen = linear_sum_assignment(cdist(points[left], means, "sqeuclidean"))[1]
        for point, number in zip(left, chosen, strict=True):
            groups[number] = np.append(groups[number], point)
    return sorted((np.sort(group) for group in groups), key=lambda group: int(group[0]))


def _squared_distances(points: NDArray[np.float64], origin: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the squared Euclidean distances [n] of points [n, D] from one point [D]."""
    distances: NDArray[np.float64] = cdist(points, origin[np.newaxis], "sqeuclidean")[:, 0]
    return distances
