# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bundle.auditing.images import RealImages
from bundle.auditing.resampling import patient_draws
from bundle.data.records import Record
from bundle.evaluation.sources import pair_estimates, source_pairs
from bundle.evaluation.tables import pair_title


def side(*groups: tuple[int, str | None, int]) -> RealImages:
    """Test images of groups of label, source and number."""
    drawn = [(label, source) for label, source, count in groups for _ in range(count)]
    records = tuple(
        Record(Path(f"{n}.png"), f"{n}.png", label, f"{n}", "test", source) for n, (label, source) in enumerate(drawn)
    )
    labels = torch.tensor([label for label, _ in drawn])
    return RealImages(torch.empty(len(drawn)), labels, torch.arange(len(drawn)), records)


def test_pairs_have_enough_images_a_side_and_those_of_one_source_come_first() -> None:
    test = side((0, "b", 30), (0, "a", 25), (0, "small", 19), (1, "a", 20), (1, "c", 40), (1, None, 50))
    found = source_pairs(test)
    assert [(pair.labels, pair.sources, pair.counts) for pair in found] == [
        ((0, 1), ("a", "a"), (25, 20)),
        ((0, 1), ("a", "c"), (25, 40)),
        ((0, 1), ("b", "a"), (30, 20)),
        ((0, 1), ("b", "c"), (30, 40)),
    ]
    described = {**found[0].content(("well", "ill"))}
    assert pair_title(described) == "well of a (25) / ill of a (20), one source"


@pytest.mark.parametrize("source", [None, "a"])
def test_data_without_sources_or_of_one_source_have_no_pairs(source: str | None) -> None:
    assert source_pairs(side((0, source, 30), (1, source, 30))) == []


def test_classifier_of_sources_is_blind_within_one() -> None:
    test = side((0, "a", 40), (0, "b", 60), (1, "a", 40), (1, "c", 60))
    is_c = torch.tensor([record.source == "c" for record in test.records])
    noise = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    logits = noise + 9.0 * torch.stack([~is_c, is_c], dim=1)
    pairs, draws = source_pairs(test), patient_draws(test.patients, 100, 0)
    found = pair_estimates(pairs, logits, test.labels, draws)
    same, other = (
        next(n for n, pair in enumerate(pairs) if pair.sources == sources) for sources in (("a", "a"), ("b", "c"))
    )
    assert found[f"source_pair_{other}_accuracy"].value == found[f"source_pair_{other}_auc"].value == 1.0
    assert found[f"source_pair_{same}_accuracy"].value == pytest.approx(0.5, abs=0.05)
    blind = found[f"source_pair_{same}_auc"]
    assert blind.low < 0.5 < blind.high
    assert blind.n == 80


def test_only_the_two_classes_of_a_pair_are_asked_for() -> None:
    test = side((0, "a", 20), (1, "b", 20), (2, "b", 20))
    logits = torch.nn.functional.one_hot(test.labels, 3).float()
    logits[:, 2] += 10.0  # an image is taken for the third class whatever it shows
    found = pair_estimates(source_pairs(test), logits, test.labels, patient_draws(test.patients, 20, 0))
    pairs = [pair.labels for pair in source_pairs(test)]
    assert found[f"source_pair_{pairs.index((0, 1))}_accuracy"].value == 1.0
    assert found[f"source_pair_{pairs.index((0, 2))}_accuracy"].value == 0.5
