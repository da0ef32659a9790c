# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Adds the checksum that this version requires to the JSONs of weights from an earlier version.

The checksum certifies the files in their present state: compare the printed facts with what you know of the training.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bundle.command_line import plain_errors
from bundle.networks.weights import WeightsError, seal_weights

__all__ = ["seal"]


def seal(folder: Path) -> list[str]:
    """Adds the checksum to every pair of a folder that has none, after verifying the rest of the pair.

    Args:
        folder: folder of the ``.pt`` and ``.json`` pairs.

    Returns:
        One line per pair with the main entries of its JSON.

    Raises:
        WeightsError: the folder holds no weights, or a pair is damaged; pairs processed before it are sealed.
    """
    paths = sorted(path.with_suffix(".pt") for path in folder.glob("*.json") if not path.name.startswith("."))
    if not paths:
        raise WeightsError(f"{folder} holds no weights. Name the models folder of a training.")
    lines = []
    for path in paths:
        info, is_new = seal_weights(path)
        entries = {**info, **info.get("scores", {})}
        said = {key: entries[key] for key in ("modality", "resolution", "class_names", "threshold") if key in entries}
        facts = ", ".join(f"{key} {value}" for key, value in said.items())
        lines.append(f"{path.stem}: {'sealed' if is_new else 'was sealed'}; {info['network']}, {facts}")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        arguments: command-line arguments; None for those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m scripts.seal", description=__doc__)
    parser.add_argument("folder", type=Path, help="models folder of a training by an earlier version")
    with plain_errors():
        print("\n".join(seal(parser.parse_args(arguments).folder)))


if __name__ == "__main__":
    main()
