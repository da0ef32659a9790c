# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Every measure against a case whose answer is known by construction, or against another implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.neighbors import NearestNeighbors

from bundle.auditing.measures import (
    adversarial_accuracy,
    area_under_curve,
    authentic,
    exceeds,
    low_percentile,
    membership_scores,
    nearest_two,
    other_images_auc,
    precision_recall,
    true_positive_rate,
    variety,
)


def cloud(n: int, seed: int, dimension: int = 8, centre: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(centre, 1.0, (n, dimension))).float()


def test_copies_are_what_lies_above_the_threshold() -> None:
    assert exceeds(torch.tensor([0.1, 0.5, 0.9]), 0.5).tolist() == [False, False, True]


def test_nearest_two_agree_with_scikit_learn_where_each_patient_has_one_image() -> None:
    x, real = cloud(30, 0), cloud(50, 1)
    first, second, index = nearest_two(torch.cdist(x, real), torch.arange(50))
    expected, neighbours = NearestNeighbors(n_neighbors=2).fit(real).kneighbors(x)
    np.testing.assert_allclose(torch.stack([first, second], dim=1), expected, rtol=1e-4)
    assert index.tolist() == neighbours[:, 0].tolist()


def test_second_image_of_the_same_patient_does_not_hide_a_copy() -> None:
    distances = torch.tensor([[0.01, 0.02, 1.0], [0.5, 0.7, 0.6]])
    first, second, index = nearest_two(distances, torch.tensor([4, 4, 9]))
    torch.testing.assert_close(first, torch.tensor([0.01, 0.5]))
    torch.testing.assert_close(second, torch.tensor([1.0, 0.6]))
    assert index.tolist() == [0, 0]
    assert nearest_two(distances, torch.tensor([4, 4, 4]))[1].tolist() == [torch.inf, torch.inf]


def test_other_images_of_the_nearest_patient_are_ranked_among_those_of_others() -> None:
    patients = torch.tensor([0, 0, 0, 1, 1, 2])
    similarity = torch.tensor(
        [
            [9.0, 5.0, 1.0, 4.0, 0.0, 3.0],  # of patient 0's other two, one is above all three of others, one above one
            [0.0, 0.0, 0.0, 9.0, 2.0, 2.0],  # ties count half
            [0.0, 0.0, 0.0, 0.0, 0.0, 9.0],  # patient 2 has no other image
        ]
    )
    found = other_images_auc(similarity, torch.tensor([0, 3, 5]), patients)
    assert found[:2].tolist() == pytest.approx([(3 + 1) / 6, (3 + 0.5) / 4])
    assert found[2].isnan()
    assert other_images_auc(similarity, torch.tensor([0, 3, 5]), torch.zeros(6, dtype=torch.int64)).isnan().all()


def authentic_share(synthetic: torch.Tensor, real: torch.Tensor) -> float:
    first, _, index = nearest_two(torch.cdist(synthetic, real), torch.arange(len(real)))
    other = nearest_two(torch.cdist(real, real), torch.arange(len(real)))[1]
    return float(authentic(first, index, other).double().mean())


def test_authenticity_of_copies_is_0_of_far_images_1_of_the_same_distribution_about_a_half() -> None:
    real = cloud(400, 0)
    assert authentic_share(real[:50], real) == 0.0
    assert authentic_share(real[:50] + 0.01 * cloud(50, 2), real) == 0.0
    assert authentic_share(cloud(50, 1, centre=20.0), real) == 1.0
    assert 0.35 < authentic_share(cloud(400, 3), real) < 0.65


def accuracy(real: torch.Tensor, synthetic: torch.Tensor) -> float:
    return adversarial_accuracy(
        torch.cdist(real, synthetic), torch.cdist(real, real), torch.cdist(synthetic, synthetic)
    )


def test_adversarial_accuracy_of_equal_copied_and_far_sets() -> None:
    real = cloud(300, 0)
    assert accuracy(real, cloud(300, 1)) == pytest.approx(0.5, abs=0.06)
    assert accuracy(real, real) == 0.0
    assert accuracy(real, cloud(300, 2, centre=30.0)) == 1.0


def test_adversarial_accuracy_is_that_of_a_leave_one_out_classifier_by_the_nearest_neighbour() -> None:
    real, synthetic = cloud(60, 0, 3), cloud(60, 1, 3, 0.5)
    both = torch.cat([real, synthetic])
    neighbours = NearestNeighbors(n_neighbors=2).fit(both).kneighbors(both)[1][:, 1]
    is_real = np.arange(120) < 60
    assert accuracy(real, synthetic) == pytest.approx(float((is_real[neighbours] == is_real).mean()))


def test_privacy_loss_shows_a_generator_that_copies_what_it_saw() -> None:
    train, held_out = cloud(200, 0), cloud(200, 1)
    copies = train + 0.05 * cloud(200, 2)
    assert accuracy(held_out, copies) - accuracy(train, copies) > 0.4
    honest = cloud(200, 3)
    assert abs(accuracy(held_out, honest) - accuracy(train, honest)) < 0.1


def test_membership_attack_finds_copied_members_and_nobody_else() -> None:
    members, others, reference = cloud(200, 0), cloud(200, 1), cloud(200, 2)

    def attack(synthetic: torch.Tensor) -> float:
        return area_under_curve(
            *(
                membership_scores(torch.cdist(x, synthetic).amin(dim=1), torch.cdist(x, reference).amin(dim=1))
                for x in (members, others)
            )
        )

    assert attack(members + 0.05 * cloud(200, 3)) > 0.95
    assert attack(cloud(200, 4)) == pytest.approx(0.5, abs=0.08)


def test_area_and_rate_of_separated_equal_and_reversed_scores() -> None:
    low, high = torch.arange(100.0), torch.arange(100.0) + 1000
    assert area_under_curve(high, low) == 1.0
    assert area_under_curve(low, low) == 0.5
    assert area_under_curve(low, high) == 0.0
    assert true_positive_rate(high, low) == 1.0
    assert true_positive_rate(low, high) == 0.0
    # One of 100 others may be taken for a member: those above the second highest of them are found.
    assert true_positive_rate(low, low) == pytest.approx(0.01)


def test_precision_and_recall_of_equal_far_and_collapsed_sets() -> None:
    real = cloud(200, 0, 4)
    precision, recall = precision_recall(real, cloud(200, 1, 4))
    assert precision > 0.8
    assert recall > 0.8
    assert precision_recall(real, cloud(200, 2, 4, centre=30.0)) == (0.0, 0.0)
    precision, recall = precision_recall(real, 0.05 * cloud(200, 3, 4))
    assert precision == 1.0
    assert recall < 0.1


def test_variety_is_the_mean_over_different_pairs() -> None:
    points = torch.tensor([[0.0], [1.0], [3.0]])
    assert variety(torch.cdist(points, points)) == pytest.approx((1 + 3 + 2) / 3)


def test_low_percentile_is_the_fifth() -> None:
    assert low_percentile(torch.linspace(0, 1, 101)) == pytest.approx(0.05)


@pytest.mark.parametrize("levels", [3, 10_000])
def test_rates_are_those_of_scikit_learn(levels: int) -> None:
    """With ties and without."""
    random = torch.Generator().manual_seed(0)
    members = torch.randint(0, levels, (130,), generator=random) + levels // 3
    others = torch.randint(0, levels, (170,), generator=random)
    truth = [1] * 130 + [0] * 170
    scores = torch.cat([members, others]).tolist()
    assert area_under_curve(members, others) == pytest.approx(roc_auc_score(truth, scores))
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    for rate in (0.0, 0.01, 0.2, 1.0):
        assert true_positive_rate(members, others, rate) == pytest.approx(max(true[false <= rate]))
