# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from bundle.candidates import overrides
from bundle.evaluation.selection import choice_tables, choose
from scripts.tools import select_settings


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


def test_candidate_without_a_measure_is_dropped() -> None:
    measured = {"a|b": [*seeds(0.9)[:2], {**seeds(0.9)[2], "leak": math.nan}], "c": seeds(0.6), "d|e": seeds(0.1)}
    choice = choose(measured)
    assert (choice.chosen, choice.dropped) == ("c", {"a|b": "missing", "d|e": "utility"})
    table = choice_tables(measured, choice)
    assert "a measure could not be taken" in table and "nan" not in table
    assert "| d\\|e |" in table
    with pytest.raises(ValueError, match="every measure"):
        choose({"a|b": measured["a|b"]})


@pytest.mark.parametrize(
    ("candidate", "options"),
    [
        (" Default ", {}),
        ("", {}),
        (" lambda_class = 2 , walk_settings#steps=3", {"lambda_class": 2, "walk_settings#steps": 3}),
    ],
)
def test_spaces_and_capitals_do_not_matter(candidate: str, options: dict[str, Any]) -> None:
    assert overrides(candidate) == options


@pytest.mark.parametrize(
    ("candidates", "numbers", "message"),
    [
        (["default", "lambda_class=2"], ["100"], "--seeds: the rule compares candidates over seeds"),
        (["default", "lambda_class=2"], ["100", "100"], "--seeds must name at least one and none twice"),
        (["default", "lambda_class=2"], ["-5", "101"], "--seeds must be at least 0, not -5"),
        (["default", "lambda_class=2"], ["4", "101"], "--seeds: the evaluation uses [4]"),
        (["default"], ["100", "101"], "--candidates: give at least two"),
        (["lambda_class=2", "lambda_class= 2.0"], ["100", "101"], "is the same as 'lambda_class=2'"),
        (["default", ""], ["100", "101"], "is the same as 'default'"),
        (["default", "=3"], ["100", "101"], "write option=value,option=value"),
        (["default", "lambda_class=2,lambda_class=3"], ["100", "101"], "no option twice"),
        (["default", "lambda_class"], ["100", "101"], "with JSON values"),
        (["default", "lambda_class=NaN"], ["100", "101"], "lambda_class must be finite"),
        (["default", "walk_settings#learning_rate=1e999"], ["100", "101"], "learning_rate must be finite"),
        (["default", "lambda_class=-1"], ["100", "101"], "--lambda_class must be at least 0, not -1"),
        (["default", "n_points=2.5"], ["100", "101"], "--n_points must be a whole number"),
    ],
)
def test_what_the_rule_cannot_compare_is_refused_at_once(
    candidates: list[str],
    numbers: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    monkeypatch.setattr(select_settings, "open_setting", None)
    with pytest.raises(SystemExit) as stopped:
        select_settings.main(["--dataset_dir", str(tmp_path), "--candidates", *candidates, "--seeds", *numbers])
    assert stopped.value.code == 1
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
