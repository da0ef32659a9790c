# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from bundle.evaluation.selection import choice_tables, choose


def seeds(utility: float, leak: float = 0.0, precision: float = 0.8) -> list[dict[str, float]]:
    """Three seeds of a candidate, which all candidates share up to a noise of their own."""
    return [
        {"utility": utility + shift, "leak": leak + shift / 10, "precision": precision + shift / 10}
        for shift in (-0.1, 0.0, 0.1)
    ]


def noisy(measured: list[dict[str, float]], key: str, size: float) -> list[dict[str, float]]:
    return [{**seed, key: seed[key] + noise} for seed, noise in zip(measured, (-size, 0.0, size), strict=True)]


def test_clearly_better_utility_decides_whatever_the_rest() -> None:
    choice = choose({"a": seeds(0.5, leak=-0.5, precision=1.0), "b": seeds(0.6)})
    assert (choice.chosen, choice.dropped) == ("b", {"a": "utility"})


def test_equal_utility_is_decided_by_the_leak() -> None:
    choice = choose({"a": seeds(0.6, leak=0.02), "b": noisy(seeds(0.599, leak=0.01), "utility", 0.1)})
    assert (choice.chosen, choice.dropped) == ("b", {"a": "leak"})


def test_equal_utility_and_leak_are_decided_by_precision() -> None:
    first, second = seeds(0.6, precision=0.7), seeds(0.6, precision=0.9)
    assert choose({"a": first, "b": second}).dropped == {"a": "precision"}


def test_first_of_equals_is_chosen() -> None:
    choice = choose({"b": seeds(0.6), "a": seeds(0.6), "c": seeds(0.6)})
    assert (choice.chosen, choice.dropped) == ("b", {"a": "", "c": ""})


def test_candidate_whose_images_do_not_pass_the_gate_is_dropped() -> None:
    measured = {"a": [*seeds(0.9)[:2], {}], "b": seeds(0.6)}
    choice = choose(measured)
    assert (choice.chosen, choice.dropped) == ("b", {"a": "gate"})
    table = choice_tables(measured, choice)
    assert "too few images pass the gate" in table and "| b | 0.6000 ± 0.1000 |" in table and "**chosen**" in table
    with pytest.raises(ValueError, match="No candidate"):
        choose({"a": [{}, {}], "b": [{}, {}]})


def test_one_seed_has_no_standard_error() -> None:
    with pytest.raises(ValueError, match="at least two seeds"):
        choose({"a": seeds(0.6)[:1]})
