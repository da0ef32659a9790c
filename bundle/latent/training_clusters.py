# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Clusters of the patients that a generator was trained on, from the file of their images' latents.

The clusters hold the images of the train split. Val and test images stay out, since they are what an audit holds a
cohort against; so do extra images, which no classifier is trained on either. Two rules make each patient stand in
exactly one cluster, as `bundle.latent.ksame` demands:

- Patients who share an image, to the last bit of its decoded pixels, count as one: the k patients of a cluster must be
  different people, and the same picture under two names is one person under two names.
- A patient with images of several classes stands in the class of most of them; of classes with equally many, in the one
  with the fewest patients of its own, since rare classes are the first to lack k patients. Their images of other
  classes are in no cluster.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bundle.files import sha256_file
from bundle.latent.ksame import Cluster, Clustering, KSameInputError, cluster_patients
from bundle.latent.real_latents import RealLatents, load_latents
from bundle.networks.model_set import ModelInfos

__all__ = ["TrainingClusters", "classes_of_patients", "merged_patients", "open_clusters"]


@dataclass(frozen=True)
class TrainingClusters:
    """Clusters of training patients and the latents of their images. It names patients: store it on site only.

    Attributes:
        k: smallest number of patients in a cluster.
        clustering: the clusters; their ``records`` are indices of ``w``.
        w: latents w+ of the clustered images, [N, layers, w_dim].
        patients: patient of each of these images, those who share an image under one name.
        images: number of training images of each class, by label, including those in no cluster.
        latents_sha256: SHA-256 of the file of latents.
        merged: patients that were counted as another one, since they share an image.
        divided: patients with images of several classes.
        left_out: their images of other classes than the one in which they stand.
        named: whether some patient has several images; if not, the data may name no patients.
    """

    k: int
    clustering: Clustering
    w: Tensor
    patients: tuple[str, ...]
    images: dict[int, int]
    latents_sha256: str
    merged: int
    divided: int
    left_out: int
    named: bool

    def of_class(self, label: int) -> list[Cluster]:
        """Returns the clusters of a class."""
        return [cluster for cluster in self.clustering.clusters if cluster.label == label]

    def centroids(self, label: int) -> Tensor:
        """Returns the centroids of a class in W, [clusters, w_dim], each the mean over the layers of that in W+.

        The walk moves one latent w per image, on guides that know W alone, so the layers' latents are projected onto W.
        The mean over the layers is linear: the projection of a centroid is the mean of the projected patients, in which
        each of them still weighs the same. The pull of the inversion keeps the layers near this mean.
        """
        means = [cluster.centroid.view(self.w.shape[1:]).double().mean(dim=0) for cluster in self.of_class(label)]
        return torch.stack(means).to(self.w)

    def weights(self, cluster: Cluster) -> Tensor:
        """Returns the weight of each of a cluster's images, [n], with a sum of 1: each patient weighs the same."""
        owners = [self.patients[record] for record in cluster.records]
        counts = Counter(owners)
        return torch.tensor([1.0 / (len(counts) * counts[owner]) for owner in owners])

    def fewest_patients(self) -> int:
        """Returns the smallest number of patients who stand behind two centroids of one class: at least 2 k."""
        labels = {cluster.label for cluster in self.clustering.clusters}
        return min(sum(sorted(len(cluster.patients) for cluster in self.of_class(label))[:2]) for label in labels)

    def describe(self, class_names: Sequence[str]) -> str:
        """Returns numbers of patients, images and clusters, and what the two rules changed, one fact a line."""
        lines = []
        for label in self.images:
            sizes = [len(cluster.patients) for cluster in self.of_class(label)]
            lines.append(
                f"{class_names[label]}: {sum(sizes)} patients in {len(sizes)} clusters of {min(sizes)} to {max(sizes)}"
            )
        if not self.named:
            lines.append(
                "No patient has two images. If the data do not name the patients, k counts images, and a person with "
                "several may stand in several clusters: name them, see docs/data.md, and train and invert anew."
            )
        if self.merged:
            lines.append(
                f"{self.merged} patients share an image with another and count as one person with them; check_data "
                f"names such images."
            )
        if self.divided:
            lines.append(
                f"{self.divided} patients have images of several classes and stand in one of these: {self.left_out} "
                f"images of the others are in no cluster."
            )
        return "\n".join(lines)


def open_clusters(
    ends: str,
    latents: str | os.PathLike[str] | None,
    k: int | None,
    models: ModelInfos,
    classes: Sequence[str],
) -> TrainingClusters | None:
    """Clusters the training patients whose images' latents are in a file.

    Args:
        ends: ``ksame``, or ``draws`` for no clusters.
        latents: file that ``invert`` wrote; None only with draws.
        k: smallest number of patients in a cluster; None only with draws.
        models: description of the generator, which must be that of the latents.
        classes: names of the classes wanted. The other ones count as well in deciding where a patient stands, so that
            the clusters of a class do not depend on which others are wanted.

    Returns:
        The clusters; None for draws.

    Raises:
        InversionError: the file is missing, of another generator, or its inversion was interrupted.
        DamagedError: the file is damaged.
        KSameInputError: the latents are not those of the generator's training images, name no patients or cannot be
            clustered, or a class has fewer than 2 k patients: a path needs two centroids.
    """
    if ends == "draws":
        return None
    assert latents is not None
    assert k is not None
    found = load_latents(latents, str(models.infos["generator"]["sha256"]))
    _check_training(found, latents, models)
    training = found.indices(("train",))
    names = [found.patient_ids[index] for index in training]
    labels = [found.labels[index] for index in training]
    patients = merged_patients(names, [found.digests[index] for index in training])
    class_of = classes_of_patients(patients, labels)
    counts = Counter(class_of.values())
    wanted = [models.class_names.index(name) for name in classes]
    for label in wanted:
        _check_number(models.class_names[label], counts[label], k, latents)
    kept = [place for place, label in enumerate(labels) if class_of[patients[place]] == label and label in wanted]
    chosen, owners = found.w[[training[place] for place in kept]], [patients[place] for place in kept]
    clusters = TrainingClusters(
        k=k,
        clustering=cluster_patients(chosen.flatten(1), owners, [labels[place] for place in kept], k),
        w=chosen,
        patients=tuple(owners),
        images={label: labels.count(label) for label in wanted},
        latents_sha256=sha256_file(latents),
        merged=len(set(names)) - len(set(patients)),
        divided=len(set(zip(patients, labels, strict=True))) - len(class_of),
        left_out=sum(class_of[patient] != label for patient, label in zip(patients, labels, strict=True)),
        named=len(set(names)) < len(names),
    )
    _check_different(clusters, models.class_names)
    return clusters


def merged_patients(patients: Sequence[str], digests: Sequence[str]) -> list[str]:
    """Gives patients who share an image one name, directly or through others.

    Args:
        patients: patient of each image, [N].
        digests: SHA-256 of each image's decoded pixels, [N].

    Returns:
        Patient of each image, [N]: of those who share images, the name that is first in the alphabet.
    """
    leader = {patient: patient for patient in patients}

    def find(patient: str) -> str:
        while leader[patient] != patient:
            patient = leader[patient]
        return patient

    owner: dict[str, str] = {}
    for patient, digest in zip(patients, digests, strict=True):
        first, last = sorted((find(owner.setdefault(digest, patient)), find(patient)))
        leader[last] = first
    return [find(patient) for patient in patients]


def classes_of_patients(patients: Sequence[str], labels: Sequence[int]) -> dict[str, int]:
    """Returns the one class in which each patient stands, see the rule at the top of this file.

    Args:
        patients: patient of each image, [N].
        labels: class of each image, [N].
    """
    numbers: dict[str, Counter[int]] = {}
    for patient, label in zip(patients, labels, strict=True):
        numbers.setdefault(patient, Counter())[label] += 1
    own = Counter(label for of in numbers.values() if len(of) == 1 for label in of)
    return {patient: min(of, key=lambda label: (-of[label], own[label], label)) for patient, of in numbers.items()}


def _check_training(found: RealLatents, latents: str | os.PathLike[str], models: ModelInfos) -> None:
    if found.split_sha256 != models.split_sha256:
        raise KSameInputError(
            f"{latents} holds other images than those of the generator's training, or other splits. The gate would not "
            f"recognise their patients. Invert the images of the training with configs/invert.json, or train all "
            f"networks on these."
        )
    if not all(found.patient_ids):
        raise KSameInputError(
            f"{latents} names no patient for some images, so that nobody can count patients. Invert the images anew "
            f"with configs/invert.json."
        )


def _check_number(name: str, patients: int, k: int, latents: str | os.PathLike[str]) -> None:
    if patients >= 2 * k:
        return
    smaller = f"Give a k of at most {patients // 2}, or leave" if patients >= 4 else "Leave"
    raise KSameInputError(
        f"{name} has {patients} patients among the training images of {latents}: with k = {k}, a path between two "
        f"centroids needs {2 * k}. {smaller} the class out (--classes), or train on more patients."
    )


def _check_different(clusters: TrainingClusters, class_names: Sequence[str]) -> None:
    for label in clusters.images:
        centroids = clusters.centroids(label)
        if len(centroids.unique(dim=0)) < len(centroids):
            raise KSameInputError(
                f"Two centroids of {class_names[label]} are the same latent: the inversion does not tell the images "
                f"apart. Train the encoder anew, or give the inversion more steps."
            )
