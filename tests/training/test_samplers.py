# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from bundle.training.errors import TrainingError
from bundle.training.samplers import BalancedBatchSampler, OtherImageSampler, PairSampler, ShuffledBatchSampler


def test_batches_are_balanced_and_depend_on_seed_and_number_alone() -> None:
    labels = [0] * 50 + [1] * 3 + [2] * 7
    batches = list(islice(BalancedBatchSampler(labels, 6, seed=1), 40))
    for batch in batches:
        assert Counter(labels[i] for i in batch) == {0: 2, 1: 2, 2: 2}
    late = BalancedBatchSampler(labels, 6, seed=1)
    late.start = 30
    assert list(islice(late, 10)) == batches[30:]
    assert list(islice(BalancedBatchSampler(labels, 6, seed=2), 40)) != batches
    assert len({i for batch in batches for i in batch if labels[i] == 0}) > 35


def test_classes_take_turns_where_the_batch_cannot_be_even() -> None:
    labels = [0] * 5 + [1] * 5
    counts = Counter(labels[i] for batch in islice(BalancedBatchSampler(labels, 3, seed=0), 200) for i in batch)
    # 600 images; the odd one of each batch goes to either class with equal chance, standard error 7.
    assert abs(counts[0] - 300) < 30


def test_further_images_do_not_crowd_out_those_of_their_class() -> None:
    labels = [0] * 55 + [1] * 10
    splits = ["extra"] * 50 + ["train"] * 15
    drawn = [i for batch in islice(BalancedBatchSampler(labels, 4, seed=0, splits=splits), 300) for i in batch]
    counts = Counter((labels[i], splits[i]) for i in drawn)
    # 600 images of each class; of class 0 either split has half of them, standard error 12.
    assert counts[1, "train"] == 600
    assert abs(counts[0, "extra"] - 300) < 50
    assert counts[0, "extra"] + counts[0, "train"] == 600


def test_no_image_is_an_error_that_names_the_cure() -> None:
    with pytest.raises(ValueError, match="Check the split"):
        BalancedBatchSampler([], 4, seed=0)


def test_batches_show_every_image_once_in_an_epoch_and_go_on_where_they_stopped() -> None:
    sampler = ShuffledBatchSampler(10, 5, seed=3)
    batches = [batch for batch, _ in zip(sampler, range(6), strict=False)]
    for epoch in range(3):
        assert sorted(batches[2 * epoch] + batches[2 * epoch + 1]) == list(range(10))
    assert batches[:2] != batches[2:4]
    sampler.start = 3
    assert next(iter(sampler)) == batches[3]
    assert len(next(iter(ShuffledBatchSampler(3, 8, seed=0)))) == 3
    with pytest.raises(TrainingError, match="train split"):
        ShuffledBatchSampler(0, 8, seed=0)


def test_pairs_are_of_patients_and_nobody_comes_twice_in_a_batch() -> None:
    patients = [0, 1, 1, 1, 2, 3, 4]
    sampler = PairSampler(patients, 3, 0)
    pairs = set()
    for _, batch in zip(range(200), sampler, strict=False):
        first, second = [patients[i] for i in batch[:3]], [patients[i] for i in batch[3:]]
        assert first == second
        assert len(set(first)) == 3
        pairs |= set(zip(batch[:3], batch[3:], strict=True))
    assert {(a, b) for a in (1, 2, 3) for b in (1, 2, 3)} <= pairs
    assert {(0, 0), (4, 4), (5, 5), (6, 6)} <= pairs
    again = PairSampler(patients, 3, 0)
    again.start = 5
    assert next(iter(again)) == next(batch for number, batch in enumerate(PairSampler(patients, 3, 0)) if number == 5)


def test_one_patient_is_too_few() -> None:
    with pytest.raises(TrainingError, match="at least 2 in train; the dataset has 1"):
        PairSampler([0, 0], 4, 0)


def test_half_of_the_pairs_are_two_images_of_one_patient() -> None:
    patients = [*range(20), *[20] * 5, *[21, 22, 23] * 2]
    sampler = OtherImageSampler(patients, 8, seed=0)
    for batch in islice(sampler, 20):
        first, second = batch[:8], batch[8:]
        assert [patients[i] for i in first] == [patients[i] for i in second]
        assert len({patients[i] for i in first}) == 8
        assert sum(one != other for one, other in zip(first, second, strict=True)) == 4
    assert sampler.batch(3) == OtherImageSampler(patients, 8, seed=0).batch(3) != sampler.batch(4)
    # All of them, where there are too few patients of either kind.
    assert {patients[20:][i] for i in OtherImageSampler(patients[20:], 8, seed=0).batch(0)} == {20, 21, 22, 23}
    few = OtherImageSampler([*range(9), 9, 9], 8, seed=0).batch(0)
    assert sum(one != other for one, other in zip(few[:8], few[8:], strict=True)) == 1
