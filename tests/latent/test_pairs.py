# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader

from bundle.latent.pairs import PairBlocks


def pairs(wanted: Iterable[tuple[int, int]], seed: int = 0, block_size: int = 3) -> list[dict[str, Any]]:
    blocks = iter(wanted)
    return list(PairBlocks(8, 2, seed, block_size, lambda: next(blocks, None)))


def test_blocks_come_as_they_are_asked_for() -> None:
    found = pairs([(0, 0), (1, 2)])
    assert [(pair["label"], pair["index"]) for pair in found] == [(0, 0), (0, 1), (0, 2), (1, 6), (1, 7), (1, 8)]
    assert all(pair["latent"].shape == (2, 8) for pair in found)
    assert pairs([]) == []


def test_a_pair_depends_on_seed_class_and_number_alone() -> None:
    many = {(pair["label"], pair["index"]): pair["latent"] for pair in pairs([(0, 0), (0, 1), (1, 0)])}
    (late,) = pairs([(0, 5)], block_size=1)
    assert torch.equal(late["latent"], many[0, 5])
    assert not torch.equal(pairs([(0, 0)], seed=1)[0]["latent"], many[0, 0])


def test_no_end_point_comes_twice() -> None:
    found = pairs([(label, block) for label in range(2) for block in range(4)])
    ends = {tuple(end.tolist()) for pair in found for end in pair["latent"]}
    assert len(ends) == 2 * len(found)


def test_next_block_is_asked_after_the_last_one_is_done() -> None:
    """So that what the gate let pass decides whether more is walked."""
    asked: list[int] = []
    done: list[int] = []

    def next_block() -> tuple[int, int] | None:
        asked.append(len(done))
        return (0, len(asked) - 1) if len(asked) <= 3 else None

    loader = DataLoader(PairBlocks(8, 2, 0, 2, next_block), batch_size=2)
    for batch in loader:
        assert batch["latent"].shape == (2, 2, 8)
        assert len(set(batch["label"].tolist())) == 1
        done.append(1)
    assert asked == [0, 1, 2, 3]
