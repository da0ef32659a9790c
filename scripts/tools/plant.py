# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Writes a folder of copies of training images, every other one altered, which an audit must reject."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bundle.auditing.planting import plant
from bundle.command_line import plain_errors
from bundle.data import open_dataset

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        arguments: command-line arguments; None for those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m scripts.tools.plant", description=__doc__)
    parser.add_argument("--dataset_dir", required=True, nargs="+", help="the real images: a folder, or several")
    parser.add_argument("--output_dir", required=True, type=Path, help="gets the folders copies and private")
    parser.add_argument("--n_images", default=100, type=int, help="copies to write (default: %(default)s)")
    parser.add_argument("--modality", default="xray", help="preset of the real images (default: %(default)s)")
    parser.add_argument("--resolution", default=256, type=int, help="side in pixels (default: %(default)s)")
    options = parser.parse_args(arguments)
    with plain_errors(FileExistsError):
        data = open_dataset(options.dataset_dir, options.output_dir, options.modality, options.resolution)
        plant(data.with_preprocessing("plain"), options.output_dir / "copies", options.n_images)
    print(f"Wrote {options.n_images} copies of training images to {options.output_dir / 'copies'}. Keep them private.")


if __name__ == "__main__":
    main()
