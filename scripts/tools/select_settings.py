# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Chooses settings of the walk on the validation images; test images are not opened.

The rule, stated in docs/evaluation.md, is that of `bundle.evaluation.selection`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bundle.allocator import keep_freed_memory
from bundle.candidates import CONFIG, check_request, open_setting
from bundle.command_line import plain_errors
from bundle.evaluation.selection import choice_tables, choose, measure_candidate
from bundle.files import write_json, write_text

__all__ = ["main"]


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
    write_text(chosen.output_dir / "tables.md", tables + "\n")
    print(f"\n{tables}\n\nChosen: {decision.chosen}")


if __name__ == "__main__":
    main()
