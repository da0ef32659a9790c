# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bundle.latent.ksame import Cluster, Clustering, KSameError, Patient, check_clusters, cluster_patients

examples = settings(derandomize=True, deadline=None, max_examples=25)


@dataclass(frozen=True)
class Images:
    latents: Tensor
    patients: Sequence[Patient]
    labels: Sequence[int]
    k: int

    def clustered(self) -> Clustering:
        return cluster_patients(self.latents, self.patients, self.labels, self.k)

    def at(self, records: list[int]) -> Images:
        patients, labels = [self.patients[i] for i in records], [self.labels[i] for i in records]
        return replace(self, latents=self.latents[records], patients=patients, labels=labels)


def images_of(patients: Sequence[Patient], k: int, dims: int = 4, seed: int = 0) -> Images:
    latents = torch.randn(len(patients), dims, generator=torch.Generator().manual_seed(seed))
    return Images(latents, patients, [0] * len(patients), k)


@st.composite
def any_images(draw: st.DrawFn) -> Images:
    """Shuffled images of one to three classes; patients have one to three, and many latents may be the same."""
    k = draw(st.integers(2, 7))
    sizes = draw(st.lists(st.integers(k, 5 * k), min_size=1, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = sum(sizes)
    images = rng.integers(1, draw(st.integers(1, 3)) + 1, size=n)
    labels = np.repeat(np.arange(len(sizes)), sizes).repeat(images).tolist()
    names = rng.permutation(n).repeat(images).tolist()
    patients = [f"p{name}" for name in names] if draw(st.booleans()) else names
    latents = torch.from_numpy(rng.standard_normal((len(names), draw(st.integers(1, 6)))))
    if draw(st.booleans()):
        latents = latents.round()
    made = Images(latents.to(draw(st.sampled_from([torch.float32, torch.float64]))), patients, labels, k)
    return made.at(rng.permutation(len(names)).tolist())


@examples
@given(any_images())
def test_every_cluster_has_k_to_2k_minus_1_patients_of_one_class_and_nobody_is_left_out(images: Images) -> None:
    clustering = images.clustered()
    label_of = dict(zip(images.patients, images.labels, strict=True))
    for label in set(images.labels):
        sizes = [len(set(cluster.patients)) for cluster in clustering.clusters if cluster.label == label]
        n = sum(value == label for value in label_of.values())
        assert len(sizes) == n // images.k
        assert sum(sizes) == n
        assert images.k <= min(sizes) <= max(sizes) <= min(min(sizes) + 1, 2 * images.k - 1)
    for cluster in clustering.clusters:
        assert {label_of[patient] for patient in cluster.patients} == {cluster.label}
        assert cluster.records == tuple(
            record for record, patient in enumerate(images.patients) if patient in cluster.patients
        )
    everybody = [patient for cluster in clustering.clusters for patient in cluster.patients]
    assert len(everybody) == len(label_of)
    assert set(everybody) == set(label_of)
    assert clustering.n_clusters == len(clustering.n_patients) == len(clustering.clusters)
    assert sum(clustering.n_patients) == len(label_of)


@examples
@given(any_images())
def test_a_centroid_is_the_mean_over_patients(images: Images) -> None:
    for cluster in images.clustered().clusters:
        means = [
            torch.stack([images.latents[i].double() for i in cluster.records if images.patients[i] == patient]).mean(0)
            for patient in cluster.patients
        ]
        assert cluster.centroid.dtype == images.latents.dtype
        torch.testing.assert_close(cluster.centroid.double(), torch.stack(means).mean(0), rtol=1e-6, atol=1e-6)


@examples
@given(any_images(), st.integers(0, 2**32 - 1))
def test_the_order_of_the_images_changes_no_bit(images: Images, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(images.patients)).tolist()
    one, other = images.clustered(), images.at(order).clustered()
    assert one.n_clusters == other.n_clusters
    for cluster, again in zip(one.clusters, other.clusters, strict=True):
        assert (cluster.label, cluster.patients) == (again.label, again.patients)
        assert cluster.records == tuple(sorted(order[record] for record in again.records))
        assert torch.equal(cluster.centroid, again.centroid)


@pytest.mark.parametrize(
    ("n", "k", "sizes"),
    [
        (103, 5, [5] * 17 + [6] * 3),
        (101, 10, [10] * 9 + [11]),
        (9, 5, [9]),
        (28, 10, [14, 14]),
        (5, 5, [5]),
        (5, 2, [2, 3]),
    ],
)
def test_the_remainder_is_spread_over_the_clusters(n: int, k: int, sizes: list[int]) -> None:
    """k-SALSA's own clustering leaves a cluster of 4 of 103 patients at k = 5, and one of 8 of 101 at k = 10."""
    assert sorted(images_of(list(range(n)), k).clustered().n_patients) == sizes


def test_the_remainder_joins_the_nearest_cluster() -> None:
    for side in (-1.0, 1.0):
        latents = torch.tensor([-10.0] * 5 + [10.0] * 5 + [3.0 * side]).unsqueeze(1)
        clusters = Images(latents, list(range(11)), [0] * 11, 5).clustered().clusters
        assert [cluster.centroid.sign().item() for cluster in clusters if 10 in cluster.patients] == [side]
        assert sorted(len(cluster.patients) for cluster in clusters) == [5, 6]


@pytest.mark.parametrize("k", [2, 5, 10])
def test_planted_groups_of_k_are_found(k: int) -> None:
    rng = np.random.default_rng(k)
    group = rng.permutation(np.repeat(np.arange(30), k))
    noise, centres = rng.standard_normal((30 * k, 32)), 3.0 * rng.standard_normal((30, 32))
    clustering = Images(torch.from_numpy(centres[group] + noise), list(range(30 * k)), [0] * 30 * k, k).clustered()
    found = {cluster.patients for cluster in clustering.clusters}
    assert found == {tuple(np.flatnonzero(group == number).tolist()) for number in range(30)}


def test_clusters_are_tighter_than_groups_in_any_order() -> None:
    images = images_of(list(range(200)), k=5, dims=8)
    clusters = images.clustered().clusters
    within = sum(float((images.latents[list(c.records)] - c.centroid).square().sum()) for c in clusters)
    groups = images.latents.view(40, 5, 8)
    assert within < 0.6 * float((groups - groups.mean(dim=1, keepdim=True)).square().sum())


def test_a_patient_with_many_images_weighs_as_much_as_others() -> None:
    latents = torch.tensor([[0.0]] * 9 + [[3.0], [6.0]])
    (cluster,) = Images(latents, ["many"] * 9 + ["one", "two"], [1] * 11, 3).clustered().clusters
    assert cluster.centroid.item() == 3.0
    assert cluster.patients == ("many", "one", "two")
    assert cluster.records == tuple(range(11))


def test_many_images_of_too_few_patients_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Class 0 has 4 patients, fewer than k = 5.*smaller k"):
        images_of(["a", "b", "c", "d"] * 10, k=5).clustered()


def test_the_class_that_is_too_small_is_named() -> None:
    images = images_of(list(range(10)), k=3)
    with pytest.raises(ValueError, match=r"Class 2 has 2 patients, fewer than k = 3"):
        replace(images, labels=[0] * 8 + [2] * 2).clustered()


@pytest.mark.parametrize("k", [1, 0, -5])
def test_k_below_2_is_refused(k: int) -> None:
    images = images_of(list(range(6)), k)
    with pytest.raises(ValueError, match=rf"k = {k} hides nobody"):
        images.clustered()
    with pytest.raises(ValueError, match=rf"k = {k} hides nobody"):
        check_clusters(Clustering(()), images.patients, images.labels, k)


def test_a_patient_with_images_in_two_classes_is_refused() -> None:
    images = replace(images_of(["a", "b", "c", "a", "d"], k=2), labels=[0, 0, 1, 1, 1])
    with pytest.raises(ValueError, match=r"Patient 'a' has images of the classes 0 and 1"):
        images.clustered()


@pytest.mark.parametrize(
    ("patients", "labels", "message"),
    [
        (torch.arange(4), [0] * 4, r"patients must be all int or all str.*patients\.tolist"),
        ([1, "1", 2, "2"], [0] * 4, "patients must be all int or all str"),
        (list(np.arange(4)), [0] * 4, "patients must be all int or all str"),
        ([0, 1, 2, 3], torch.zeros(4), r"labels must be all int\. .*labels\.tolist"),
    ],
)
def test_patients_that_would_be_counted_wrongly_are_refused(
    patients: Sequence[Patient], labels: Sequence[int], message: str
) -> None:
    """One patient as 1 and "1", and tensors, of which no element is equal to another as a key, would count twice."""
    with pytest.raises(TypeError, match=message):
        cluster_patients(torch.randn(4, 2), patients, labels, 2)


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (torch.zeros(6, 3, 2), r"floats \[N, D\].*\[6, 3, 2\].*flatten"),
        (torch.zeros(0, 2), r"floats \[N, D\] of at least one image"),
        (torch.zeros(6, 2, dtype=torch.int64), r"floats \[N, D\].*int64"),
        (torch.zeros(5, 2), "5 latents of 6 images"),
        (torch.tensor([[0.0, 1.0]] * 4 + [[1.0, torch.nan], [1.0, 0.0]]), "latent of image 4 is not finite"),
        (torch.tensor([[0.0, 1.0]] * 5 + [[1.0, torch.inf]]), "latent of image 5 is not finite"),
    ],
)
def test_latents_that_cannot_be_clustered_are_refused(latents: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cluster_patients(latents, list(range(6)), [0] * 6, 2)


def test_patients_and_labels_must_match() -> None:
    with pytest.raises(ValueError, match="6 patients and 5 labels"):
        cluster_patients(torch.zeros(6, 2), list(range(6)), [0] * 5, 2)


def changed(clustering: Clustering, number: int, cluster: Cluster) -> Clustering:
    clusters = list(clustering.clusters)
    clusters[number] = cluster
    return Clustering(tuple(clusters))


def without_last(cluster: Cluster) -> Cluster:
    return replace(cluster, patients=cluster.patients[:-1], records=cluster.records[:-1])


def too_small(clustering: Clustering) -> Clustering:
    """Moves a patient of cluster 0 to cluster 1, of the same class: nobody is missing, but one cluster is below k."""
    first, second = clustering.clusters[:2]
    moved = replace(
        second,
        patients=(*second.patients, first.patients[-1]),
        records=(*second.records, first.records[-1]),
    )
    return changed(changed(clustering, 0, without_last(first)), 1, moved)


def left_out(clustering: Clustering) -> Clustering:
    large = clustering.n_patients.index(4)
    return changed(clustering, large, without_last(clustering.clusters[large]))


def cluster_left_out(clustering: Clustering) -> Clustering:
    return Clustering(clustering.clusters[1:])


def image_in_two_clusters(clustering: Clustering) -> Clustering:
    first, second = clustering.clusters[:2]
    both = replace(second, patients=(*second.patients, first.patients[0]), records=(*second.records, first.records[0]))
    return changed(clustering, 1, both)


def same_patient_twice(clustering: Clustering) -> Clustering:
    """Names a patient twice, so that the count of names reaches k."""
    shrunk = too_small(clustering)
    first = shrunk.clusters[0]
    return changed(shrunk, 0, replace(first, patients=(*first.patients, first.patients[0])))


def others_named(clustering: Clustering) -> Clustering:
    return changed(clustering, 0, replace(clustering.clusters[0], patients=("x", "y", "z")))


def mixed_classes(clustering: Clustering) -> Clustering:
    """Swaps a patient of the first class with one of the last."""
    first, last = clustering.clusters[0], clustering.clusters[-1]
    a = replace(
        first,
        patients=(*first.patients[:-1], last.patients[-1]),
        records=(*first.records[:-1], last.records[-1]),
    )
    b = replace(
        last,
        patients=(*last.patients[:-1], first.patients[-1]),
        records=(*last.records[:-1], first.records[-1]),
    )
    return changed(changed(clustering, 0, a), clustering.n_clusters - 1, b)


def other_label(clustering: Clustering) -> Clustering:
    return changed(clustering, 0, replace(clustering.clusters[0], label=1))


def unknown_image(clustering: Clustering) -> Clustering:
    first = clustering.clusters[0]
    return changed(clustering, 0, replace(first, records=(-1, *first.records[1:])))


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (too_small, "Cluster 0 holds 2 different patients, not k = 3"),
        (left_out, r"Image \d+ is in 0 clusters"),
        (cluster_left_out, r"Image \d+ is in 0 clusters"),
        (image_in_two_clusters, r"Image \d+ is in 2 clusters"),
        (same_patient_twice, "Cluster 0 does not name exactly the patients"),
        (others_named, "Cluster 0 does not name exactly the patients"),
        (mixed_classes, "Cluster 0 is of class 0, but holds images of class 1"),
        (other_label, "Cluster 0 is of class 1, but holds images of class 0"),
        (unknown_image, "Image -1 is clustered"),
    ],
)
def test_a_planted_violation_is_found(plant: Callable[[Clustering], Clustering], message: str) -> None:
    images = images_of([f"p{number:02d}" for number in range(20)], k=3)
    images = replace(images, labels=[0] * 9 + [1] * 11)
    clustering = images.clustered()
    check_clusters(clustering, images.patients, images.labels, images.k)
    with pytest.raises(KSameError, match=message):
        check_clusters(plant(clustering), images.patients, images.labels, images.k)


def test_a_patient_whose_images_are_in_two_clusters_is_found() -> None:
    """As a clustering of images makes them that knows no patients."""
    one = Cluster(0, ("a", "b", "c"), (0, 1, 2), torch.zeros(4))
    other = Cluster(0, ("c", "d", "e"), (3, 4, 5), torch.zeros(4))
    with pytest.raises(KSameError, match=r"Patient 'c' is in clusters 0 and 1"):
        check_clusters(Clustering((one, other)), ["a", "b", "c", "c", "d", "e"], [0] * 6, 3)


def test_a_clustering_of_a_smaller_k_is_found() -> None:
    images = images_of(list(range(30)), k=3)
    with pytest.raises(KSameError, match=r"holds 3 different patients, not k = 5"):
        check_clusters(images.clustered(), images.patients, images.labels, 5)


def test_another_centroid_keeps_the_guarantee() -> None:
    """A method that optimises the latent of a cluster replaces the centroid alone."""
    images = images_of(list(range(12)), k=4)
    clusters = [replace(cluster, centroid=torch.ones(3, 4)) for cluster in images.clustered().clusters]
    check_clusters(Clustering(tuple(clusters)), images.patients, images.labels, images.k)


def test_result_cannot_be_changed() -> None:
    clustering = images_of(list(range(6)), k=3).clustered()
    with pytest.raises(AttributeError):
        clustering.clusters[0].patients = (1, 2, 3)  # type: ignore[misc]
