# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Copies a data set with few training images and all of val and test, to train a GAN that memorises."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bundle.command_line import plain_errors
from bundle.data import open_dataset
from bundle.data.subset import write_subset

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        arguments: command-line arguments; None for those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m scripts.tools.subset", description=__doc__)
    parser.add_argument("--dataset_dir", required=True, nargs="+", help="the whole data set: a folder, or several")
    parser.add_argument("--output_dir", required=True, type=Path, help="gets images/ (the part) and private/")
    parser.add_argument("--n_train", type=int, default=100, help="training images kept (default: %(default)s)")
    parser.add_argument("--modality", default="xray", help="preset (default: %(default)s)")
    options = parser.parse_args(arguments)
    with plain_errors(FileExistsError):
        data = open_dataset(options.dataset_dir, options.output_dir, options.modality)
        write_subset(data, options.output_dir / "images", options.n_train)
    print(f"Train on {options.output_dir / 'images'}")


if __name__ == "__main__":
    main()
