# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""What holds for every configuration file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import scripts
from scripts.options import KINDS
from tests.conftest import ROOT

FILES = sorted(path for path in (ROOT / "configs").glob("*.json") if not path.name.startswith("metadata"))
# Small files that change options of another one, behind which they are named.
OVERLAYS = {"evaluate_quick": ("evaluate",), "memorise": ("train_gan",), "fundus": ()}
CONFIGS = [path for path in FILES if path.stem not in OVERLAYS]
# A modality goes behind every one of them.
OVERLAYS["fundus"] = tuple(path.stem for path in CONFIGS)


@pytest.fixture(params=CONFIGS, ids=[path.stem for path in CONFIGS])
def text(request: pytest.FixtureRequest) -> str:
    path: Path = request.param
    return path.read_text(encoding="utf-8")


def test_starts_from_another_folder(text: str) -> None:
    # MONAI evaluates this before it puts the bundle on the path; the import of scripts would fail, and stay failed.
    assert "initialize" not in json.loads(text)


def test_tracking_writes_no_configuration_where_the_artifacts_are_lost(text: str) -> None:
    config = json.loads(text)
    assert config["save_execute_config"] is False
    if "evaluator" in config or "train" in config:
        assert config["tracking_uri"] == "$scripts.tracking_uri(@output_dir)"


def test_every_name_of_scripts_exists(text: str) -> None:
    names = set(re.findall(r"\bscripts\.(\w+)", text))
    assert names
    assert {name for name in names if not hasattr(scripts, name)} == set()


def test_options_are_checked_before_anything_else_is_built(text: str) -> None:
    config = json.loads(text)
    runs = {
        key: value for key, value in config.items() if isinstance(value, list) and key not in ("imports", "handlers")
    }
    runs = {key: value for key, value in runs.items() if isinstance(value[0], str) and value[0].startswith("$")}
    assert runs
    for steps in runs.values():
        first = config["check_options"] if steps[0] == "$@check_options" else steps[0]
        assert first.startswith("$scripts.check_options(")
        checked = given_options(first, config)
        assert checked <= KINDS.keys()
        assert all(name in config for name in checked)


def given_options(expression: str, config: dict[str, Any]) -> set[str]:
    pairs = re.findall(r"(\w+)=@(\w+)", expression)
    if "**@options" in expression:
        pairs += [(name, value.removeprefix("@")) for name, value in config["options"].items()]
    assert pairs
    assert all(name == reference for name, reference in pairs)
    return {name for name, _ in pairs}


@pytest.mark.parametrize(("overlay", "base"), [(name, base) for name, bases in OVERLAYS.items() for base in bases])
def test_overlay_changes_options_that_its_base_has(overlay: str, base: str) -> None:
    changed, config = (json.loads((ROOT / "configs" / f"{name}.json").read_text("utf-8")) for name in (overlay, base))
    assert changed
    assert changed.keys() <= config.keys()
    assert all(KINDS[name].problem(value) is None for name, value in changed.items() if name in KINDS)
    assert all(config[name] != value for name, value in changed.items())
