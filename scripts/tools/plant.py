# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Writes a folder of copies of training images, every other one altered: a cohort that an audit must not let pass."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from bundle.command_line import plain_errors
from bundle.data import ImageData, open_dataset
from bundle.figures import save_png, to_uint8
from bundle.metrics.copies import PLANTED_CHANGES
from bundle.options import OptionError

__all__ = ["main", "plant"]


def plant(data: ImageData, folder: Path, n_images: int) -> None:
    """Writes copies of training images, spread over the whole of them.

    Args:
        data: the real images, without preprocessing: copies look like the files that they are of.
        folder: where the copies go; must not exist. Real images: keep it as private as the whole.
        n_images: copies. Those with odd numbers are altered, each by the next of `PLANTED_CHANGES`.

    Raises:
        FileExistsError: the folder exists.
        OptionError: there are fewer training images than that.
    """
    records = data.records("train")
    if not 1 <= n_images <= len(records):
        raise OptionError([f"n_images must be a number from 1 to {len(records)}, the training images, not {n_images}."])
    folder.mkdir(parents=True)
    names = list(PLANTED_CHANGES)
    for number, image in enumerate(data.load(records[:: len(records) // n_images][:n_images]).split(1)):
        changed = PLANTED_CHANGES[names[number // 2 % len(names)]](image) if number % 2 else image
        save_png(Image.fromarray(to_uint8(changed)[0]), folder / f"{number:04d}.png")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line.

    Args:
        arguments: of it.
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
