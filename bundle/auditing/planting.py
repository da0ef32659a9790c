# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Writes a cohort of copies of training images, which an audit must reject."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from bundle.data import ImageData
from bundle.figures import save_png, to_uint8
from bundle.metrics.copies import PLANTED_CHANGES
from bundle.options import OptionError

__all__ = ["plant"]


def plant(data: ImageData, folder: Path, n_images: int) -> None:
    """Writes copies of training images, chosen at equal distances from the list of all.

    Args:
        data: real images, opened without preprocessing, so that the copies look like the original files.
        folder: folder for the copies, which must not exist. It contains real images and must be kept private.
        n_images: number of copies; every second one is altered, by each of `PLANTED_CHANGES` in turn.

    Raises:
        FileExistsError: the folder exists.
        OptionError: n_images is below 1 or above the number of training images.
    """
    records = data.records("train")
    if not 1 <= n_images <= len(records):
        raise OptionError([f"n_images must be a number from 1 to {len(records)}, the training images, not {n_images}."])
    folder.mkdir(parents=True)
    names = list(PLANTED_CHANGES)
    for number, image in enumerate(data.load(records[:: len(records) // n_images][:n_images]).split(1)):
        changed = PLANTED_CHANGES[names[number // 2 % len(names)]](image) if number % 2 else image
        save_png(Image.fromarray(to_uint8(changed)[0]), folder / f"{number:04d}.png")
