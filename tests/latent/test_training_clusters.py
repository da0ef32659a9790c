# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.files import DamagedError, load_tensors, save_tensors
from bundle.latent.inverter import InversionError
from bundle.latent.ksame import KSameInputError
from bundle.latent.real_latents import PARTS
from bundle.latent.training_clusters import TrainingClusters, classes_of_patients, merged_patients, open_clusters
from bundle.networks.model_set import ModelInfos, read_infos
from tests.conftest import toy_latents

examples = settings(derandomize=True, deadline=None, max_examples=25)
NAMES = ["normal", "tuberculosis"]
#: Ten patients of the first class with one image each, and six of the second with two.
PATIENTS = [*(f"n{number}" for number in range(10)), *(f"t{number // 2}" for number in range(12))]
LABELS = [0] * 10 + [1] * 12


@pytest.fixture(scope="module")
def models(toy_models: Path) -> ModelInfos:
    return read_infos(toy_models)


def clusters(
    toy_models: Path,
    folder: Path,
    patients: Sequence[str] = PATIENTS,
    labels: Sequence[int] = LABELS,
    k: int = 3,
    classes: Sequence[str] = NAMES,
    **changes: Any,
) -> TrainingClusters:
    toy_latents(toy_models, folder / "latents.pt", patients, labels, **changes)
    found = open_clusters("ksame", folder / "latents.pt", k, read_infos(toy_models), classes)
    assert found is not None
    return found


def test_classes_are_clustered_apart_and_counted(toy_models: Path, tmp_path: Path) -> None:
    found = clusters(toy_models, tmp_path)
    assert {label: len(found.of_class(label)) for label in (0, 1)} == {0: 3, 1: 2}
    assert found.images == {0: 10, 1: 12}
    assert found.fewest_patients() == 6
    assert (found.merged, found.divided, found.left_out, found.named) == (0, 0, 0, True)
    told = found.describe(NAMES).splitlines()
    assert told == ["normal: 10 patients in 3 clusters of 3 to 4", "tuberculosis: 6 patients in 2 clusters of 3 to 3"]


def test_centroids_are_the_patients_mean_over_images_and_layers(toy_models: Path, tmp_path: Path) -> None:
    found = clusters(toy_models, tmp_path)
    centroids = found.centroids(1)
    assert centroids.shape == (2, 8)
    for centroid, cluster in zip(centroids, found.of_class(1), strict=True):
        means = [
            found.w[[record for record in cluster.records if found.patients[record] == patient]].mean(dim=(0, 1))
            for patient in cluster.patients
        ]
        torch.testing.assert_close(centroid, torch.stack(means).mean(dim=0))
        torch.testing.assert_close(found.weights(cluster), torch.full((6,), 1 / 6))


def test_only_the_train_split_is_clustered(toy_models: Path, tmp_path: Path) -> None:
    splits = ["train"] * 8 + ["test", "val"] + ["train"] * 10 + ["extra"] * 2
    found = clusters(toy_models, tmp_path, splits=splits, k=2)
    assert {patient for cluster in found.clustering.clusters for patient in cluster.patients} == {
        *(f"n{number}" for number in range(8)),
        *(f"t{number}" for number in range(5)),
    }
    assert found.images == {0: 8, 1: 10}


def test_draws_read_nothing(models: ModelInfos) -> None:
    assert open_clusters("draws", None, None, models, NAMES) is None


def test_patients_who_share_an_image_count_as_one(toy_models: Path, tmp_path: Path) -> None:
    """Two names for one picture would let two patients pass for three."""
    digests = [f"{number:064x}" for number in range(22)]
    digests[1] = digests[0]
    digests[2], digests[3] = digests[0], digests[4]
    found = clusters(toy_models, tmp_path, digests=digests)
    assert found.merged == 3
    together = [cluster for cluster in found.of_class(0) if {0, 1, 2} & set(cluster.records)]
    assert len(together) == 1
    assert {0, 1, 2} < set(together[0].records)
    assert sum(len(cluster.patients) for cluster in found.of_class(0)) == 7
    assert "3 patients share an image with another" in found.describe(NAMES)
    with pytest.raises(KSameInputError, match="normal has 7 patients"):
        clusters(toy_models, tmp_path, digests=digests, k=5)


def test_a_patient_with_images_of_two_classes_stands_in_one(toy_models: Path, tmp_path: Path) -> None:
    patients = [*PATIENTS, "n0", "t0", "both", "both"]
    found = clusters(toy_models, tmp_path, patients, [*LABELS, 1, 0, 0, 1])
    # n0 has one image of each class, and so has "both": the rarer class has them. t0 has two of one class.
    members = {label: {p for cluster in found.of_class(label) for p in cluster.patients} for label in (0, 1)}
    assert members[0] == {f"n{number}" for number in range(1, 10)}
    assert members[1] == {"n0", "both", *(f"t{number}" for number in range(6))}
    assert (found.divided, found.left_out) == (3, 3)
    assert len(found.w) == 26 - 3
    assert "3 patients have images of several classes" in found.describe(NAMES)
    assert found.images == {0: 12, 1: 14}


def test_clusters_of_a_class_do_not_depend_on_the_other_classes_wanted(toy_models: Path, tmp_path: Path) -> None:
    patients, labels = [*PATIENTS, "n0", "t0"], [*LABELS, 1, 0]
    both = clusters(toy_models, tmp_path, patients, labels)
    one = clusters(toy_models, tmp_path, patients, labels, classes=["tuberculosis"])
    assert one.images == {1: 13}
    assert [cluster.patients for cluster in one.clustering.clusters] == [c.patients for c in both.of_class(1)]
    assert torch.equal(one.centroids(1), both.centroids(1))


def test_images_without_patients_are_said_to_count_as_patients(toy_models: Path, tmp_path: Path) -> None:
    found = clusters(toy_models, tmp_path, [f"image{number}.png" for number in range(22)])
    assert not found.named
    assert "No patient has two images. If the data do not name the patients" in found.describe(NAMES)


@examples
@given(st.data())
def test_every_cluster_has_k_people_and_nobody_is_in_two(data: st.DataObject) -> None:
    """What the two rules are for: names and classes as they come, images shared at random."""
    n = data.draw(st.integers(1, 40))
    patients = data.draw(st.lists(st.sampled_from([f"p{i}" for i in range(15)]), min_size=n, max_size=n))
    labels = data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    digests = data.draw(st.lists(st.integers(0, 60).map(str), min_size=n, max_size=n))
    people = merged_patients(patients, digests)
    for one, other in zip(range(n), range(1, n), strict=False):
        if patients[one] == patients[other] or digests[one] == digests[other]:
            assert people[one] == people[other]
    assert set(people) <= set(patients)
    assert merged_patients(people, digests) == people
    standing = classes_of_patients(people, labels)
    assert standing.keys() == set(people)
    for person, label in standing.items():
        own = Counter(value for owner, value in zip(people, labels, strict=True) if owner == person)
        assert own[label] == max(own.values())


def test_people_are_found_through_others() -> None:
    assert merged_patients(["d", "c", "b", "b", "a", "e"], ["1", "2", "2", "3", "3", "4"]) == [*"daaaae"]
    assert merged_patients(["b", "a", "a", "c"], ["1", "1", "2", "2"]) == ["a"] * 4


@pytest.mark.parametrize(
    ("k", "words"),
    [
        (4, r"tuberculosis has 6 patients .* with k = 4, .* needs 8\. Give a k of at most 3, or leave the class out"),
        (6, r"normal has 10 patients .* with k = 6, .* needs 12\. Give a k of at most 5"),
        (11, r"normal has 10 patients .* with k = 11, .* needs 22"),
    ],
)
def test_a_class_with_too_few_patients_is_named_with_their_number(
    toy_models: Path, tmp_path: Path, k: int, words: str
) -> None:
    with pytest.raises(KSameInputError, match=words):
        clusters(toy_models, tmp_path, k=k)


def test_a_class_for_which_no_k_helps_is_to_be_left_out(toy_models: Path, tmp_path: Path) -> None:
    with pytest.raises(KSameInputError, match=r"tuberculosis has 3 patients .*centroids needs 4\. Leave the class out"):
        clusters(toy_models, tmp_path, PATIENTS[:16], LABELS[:16], k=2)
    assert clusters(toy_models, tmp_path, PATIENTS[:16], LABELS[:16], k=2, classes=["normal"]).images == {0: 10}


def test_latents_of_other_networks_images_and_forms_are_refused(
    toy_models: Path, tmp_path: Path, models: ModelInfos
) -> None:
    with pytest.raises(InversionError, match="latents of another generator"):
        clusters(toy_models, tmp_path, generator_sha256="1" * 64)
    with pytest.raises(KSameInputError, match="other images than those of the generator's training"):
        clusters(toy_models, tmp_path, split_sha256="1" * 64)
    with pytest.raises(KSameInputError, match="names no patient for some images"):
        clusters(toy_models, tmp_path, ["", *PATIENTS[1:]])
    with pytest.raises(KSameInputError, match="The latent of image 0 is not finite"):
        clusters(toy_models, tmp_path, w=torch.full((22, 8, 8), torch.nan))
    with pytest.raises(KSameInputError, match="Two centroids of normal are the same latent"):
        clusters(toy_models, tmp_path, w=torch.zeros(22, 8, 8))
    content = load_tensors(tmp_path / "latents.pt")
    save_tensors(tmp_path / "latents.pt", {**content, "labels": content["labels"][:-1]})
    with pytest.raises(DamagedError, match="is damaged"):
        open_clusters("ksame", tmp_path / "latents.pt", 3, models, NAMES)


def test_latents_that_are_not_there_are_told_with_the_reason(tmp_path: Path, models: ModelInfos) -> None:
    with pytest.raises(InversionError, match=r"does not exist\. Invert the images with configs/invert\.json"):
        open_clusters("ksame", tmp_path / "latents.pt", 3, models, NAMES)
    (tmp_path / PARTS).mkdir()
    with pytest.raises(InversionError, match="its inversion was interrupted"):
        open_clusters("ksame", tmp_path / "latents.pt", 3, models, NAMES)
