# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Chooses settings of the walk on the validation images; test images are not opened.

The rule, stated in docs/evaluation.md, is that of `bundle.evaluation.selection`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from tqdm import tqdm

from bundle.allocator import keep_freed_memory
from bundle.command_line import plain_errors
from bundle.commands import Evaluate
from bundle.evaluation.selection import choice_tables, choose, measure_candidate
from bundle.evaluation.setting import Setting
from bundle.files import atomic_write, write_json
from bundle.options import validate

__all__ = ["check_request", "main", "open_setting", "overrides"]

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
    return setting


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        arguments: command-line arguments; None for those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m scripts.tools.select_settings", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--dataset_dir", required=True, nargs="+", help="the real images: a folder, or several")
    parser.add_argument(
        "--candidates",
        required=True,
        nargs="+",
        help="two or more of option=value,option=value, such as lambda_class=2,walk_settings#steps=80; or default. "
        "Among equals, the first is chosen",
    )
    parser.add_argument("--overlays", nargs="*", default=[], help="configuration files, such as configs/fundus.json")
    parser.add_argument("--models_dir", help="the networks (that of the modality)")
    parser.add_argument(
        "--squeezenet_file", help="file of SqueezeNet 1.1's weights; left out, torchvision downloads it"
    )
    parser.add_argument("--n_images", type=int, help="images of a cohort (as many as training images)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[100, 101, 102], help="other than the evaluation's")
    parser.add_argument("--output_dir", default="output/selection", type=Path, help="(%(default)s)")
    chosen = parser.parse_args(arguments)
    options: dict[str, Any] = {
        "dataset_dir": chosen.dataset_dir,
        "n_images": chosen.n_images,
        "squeezenet_file": chosen.squeezenet_file,
        "output_dir": str(chosen.output_dir),
        "published_pairs": 0,
    }
    if chosen.models_dir:
        options["models_dir"] = chosen.models_dir
    keep_freed_memory()
    with plain_errors(ValueError):
        check_request(chosen.candidates, chosen.seeds)
        files = [CONFIG, *chosen.overlays]
        first = open_setting(files, options, chosen.candidates[0])
        settings = {chosen.candidates[0]: first}
        settings |= {name: open_setting(files, options, name, first) for name in chosen.candidates[1:]}
        for step in tqdm(list(first.reference.steps()), "comparing real images", unit="step"):
            step.run()
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in settings}
        # Seeds outside, candidates inside: candidates are compared at any time over the same seeds.
        tasks = [(seed, name) for seed in chosen.seeds for name in settings]
        for seed, name in tqdm(tasks, "trying candidates", unit="candidate"):
            measured[name].append(measure_candidate(settings[name], seed))
        decision = choose(measured)
    tables = choice_tables(measured, decision)
    write_json(chosen.output_dir / "selection.json", {"measured": measured, **asdict(decision), "seeds": chosen.seeds})
    with atomic_write(chosen.output_dir / "tables.md") as temporary:
        temporary.write_text(tables + "\n", encoding="utf-8")
    print(f"\n{tables}\n\nChosen: {decision.chosen}")


if __name__ == "__main__":
    main()
