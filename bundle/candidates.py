# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Candidates for the settings of the walk: options of an evaluation that is judged by validation images."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from monai.bundle import ConfigParser

from bundle.commands.assessment import Evaluate
from bundle.evaluation.selection import ARM
from bundle.evaluation.setting import Setting
from bundle.options import validate

__all__ = ["CONFIG", "check_request", "open_setting", "overrides"]

#: Configuration of the evaluation.
CONFIG = "configs/evaluate.json"


def overrides(candidate: str) -> dict[str, Any]:
    """Returns the options of a candidate written as "option=value,option=value"; "default" and "" change none.

    Raises:
        ValueError: a name is empty or occurs twice, a value is not valid JSON or not finite, or an option of the
            evaluation cannot have this value.
    """
    found: dict[str, Any] = {}
    if candidate.strip().lower() in ("", "default"):
        return found
    for part in candidate.split(","):
        name, _, value = (text.strip() for text in part.partition("="))
        if not name or name in found:
            raise ValueError(f"--candidates {candidate!r}: write option=value,option=value, no option twice")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"--candidates {candidate!r}: write option=value,option=value with JSON values") from error
        if not _is_finite(found[name]):
            raise ValueError(f"--candidates {candidate!r}: {name} must be finite")
    problems = validate(Evaluate, {name: value for name, value in found.items() if name in Evaluate.model_fields})
    if problems:
        raise ValueError("\n".join(f"--candidates {candidate!r}: {problem}" for problem in problems))
    return found


def _is_finite(value: Any) -> bool:
    """Returns whether a JSON value is without NaN and infinity, which Python's JSON accepts."""
    if isinstance(value, dict | list):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def check_request(candidates: Sequence[str], seeds: Sequence[int]) -> None:
    """Refuses candidates and seeds that the rule cannot compare.

    Args:
        candidates: see `overrides`.
        seeds: random seeds.

    Raises:
        ValueError: there are fewer than two candidates or seeds, some are repeated, a seed is no random seed or one of
            the evaluation's, or a candidate is not valid.
    """
    if len(seeds) < 2:
        raise ValueError("--seeds: the rule compares candidates over seeds, so give at least two")
    if problems := validate(Evaluate, {"seeds": list(seeds)}):
        raise ValueError(problems[0])
    if reserved := sorted(set(ConfigParser.load_config_file(CONFIG)["seeds"]) & set(seeds)):
        raise ValueError(f"--seeds: the evaluation uses {reserved} to judge what was chosen, so give others")
    if len(candidates) < 2:
        raise ValueError("--candidates: give at least two, such as: default lambda_class=2")
    parsed: list[dict[str, Any]] = []
    for candidate in candidates:
        changed = overrides(candidate)
        if changed in parsed:
            raise ValueError(f"--candidates {candidate!r} is the same as {candidates[parsed.index(changed)]!r}")
        parsed.append(changed)


def open_setting(
    files: Sequence[str], options: dict[str, Any], candidate: str, first: Setting | None = None
) -> Setting:
    """Opens the evaluation of one candidate, judged by validation images.

    Args:
        files: configuration files, the first of which is that of the evaluation.
        options: options of the evaluation that all candidates share.
        candidate: options of the candidate, see `overrides`.
        first: the evaluation of another candidate, whose real images are used again; None to load them.

    Raises:
        ValueError: the configuration has no such option, or see `overrides`.
    """
    parser = ConfigParser(ConfigParser.load_config_files(list(files)))
    for name, value in {**options, **overrides(candidate)}.items():
        if name not in parser:
            raise ValueError(f"--candidates {candidate!r}: {CONFIG} has no option {name!r}")
        parser[name] = value
    judged = "$bundle.evaluation.setting.evaluation_images(@data.judged_by('val'))"
    parser["setting#real"] = judged if first is None else first.real
    setting = parser.get_parsed_content("setting")
    assert isinstance(setting, Setting)
    setting.arms = {ARM: setting.arms[ARM]}  # no other arm's images are made
    return setting
