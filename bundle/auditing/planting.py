# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""A folder of copies of training images: a cohort that an audit must not let pass."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from bundle.data import ImageData
from bundle.figures import save_png, to_uint8
from bundle.metrics.copies import PLANTED_CHANGES
from bundle.options import OptionError

__all__ = ["plant"]


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
