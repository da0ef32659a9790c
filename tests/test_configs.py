# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""What holds for every configuration file."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bundle.commands import COMMANDS
from bundle.options import Options, validate
from tests.conftest import ROOT

FILES = sorted(path for path in (ROOT / "configs").glob("*.json") if not path.name.startswith("metadata"))
# Small files that change options of another one, behind which they are named.
OVERLAYS = {"evaluate_quick": ("evaluate",), "memorise": ("train_gan",), "published": ("plan",), "fundus": ()}
CONFIGS = [path for path in FILES if path.stem not in OVERLAYS]
# A modality goes behind every one of them but those that read the modality from a cohort.
OVERLAYS["fundus"] = tuple(path.stem for path in CONFIGS if path.stem not in ("export", "release", "send"))


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
        assert config["tracking_uri"] == "$bundle.tracking.tracking_uri(@output_dir)"


def test_every_name_is_the_full_one_of_something_that_is_there(text: str) -> None:
    imports = [line.removeprefix("$import ") for line in json.loads(text)["imports"]]
    names = set(re.findall(r"\b((?:bundle|scripts)(?:\.\w+)+)", text)) - set(imports)
    assert names
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
    # MONAI imports what a _target_ names; what an expression names must be imported before.
    expressions = re.sub(r'"_target_": "[^"]*"|"_desc_": "[^"]*"|"\$import [^"]*"', "", text)
    named = set(re.findall(r"\b((?:bundle|scripts)(?:\.\w+)+)", expressions))
    modules = {name.rpartition(".")[0] for name in named}
    wanted = modules | {module.partition(".")[0] for module in modules}
    assert {name for name in imports if name.startswith(("bundle", "scripts"))} == wanted


def test_options_are_checked_before_anything_else_is_built(text: str) -> None:
    config = json.loads(text)
    runs = {key: value for key, value in config.items() if isinstance(value, list) and "$@check_options" in value}
    assert runs
    assert all(steps[0] == "$@check_options" for steps in runs.values())
    starts = {key for key, value in config.items() if isinstance(value, list) and str([*value, ""][0]).startswith("$")}
    assert starts - {"imports"} == runs.keys()


def test_every_plain_value_is_an_option_with_a_type(text: str) -> None:
    config = json.loads(text)
    model = model_of(config)
    plain = {name for name, value in config.items() if not isinstance(value, dict | list) and not is_component(value)}
    described = {"check_options", "_desc_"}
    assert plain - described - model.model_fields.keys() == set()
    assert {name for name in model.model_fields if name not in config} <= {"run_name", "is_not_rank0", "seeds"}
    given = {name: config[name] for name in model.model_fields if name in config}
    fixed = {name: value for name, value in given.items() if not str(value).startswith(("$", "@")) and value != ""}
    assert validate(model, fixed) == []


def is_component(value: Any) -> bool:
    """Whether an expression makes something that other items are made of, and no option."""
    return (
        isinstance(value, str)
        and re.match(r"\$(@\w+\.\w+$|isinstance|bundle\.[\w.]+(\(@|\.new_\w+))", value) is not None
    )


def model_of(config: dict[str, Any]) -> type[Options]:
    found = re.fullmatch(r"\$bundle\.commands\.check_options\('(\w+)'\)", config["check_options"])
    assert found
    return COMMANDS[found[1]]


@pytest.mark.parametrize(("overlay", "base"), [(name, base) for name, bases in OVERLAYS.items() for base in bases])
def test_overlay_changes_options_that_its_base_has(overlay: str, base: str) -> None:
    changed, config = (json.loads((ROOT / "configs" / f"{name}.json").read_text("utf-8")) for name in (overlay, base))
    assert changed
    assert changed.keys() <= config.keys()
    assert validate(model_of(config), changed) == []
    assert all(config[name] != value for name, value in changed.items())
