# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Sample images of a GAN during its training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from bundle.figures import image_grid, save_png
from bundle.networks.sampling import fixed_latents, sample_images
from bundle.training.core import every_kimg
from bundle.training.stylegan2_trainer import StyleGAN2Trainer

__all__ = ["SampleGrid"]


class SampleGrid:
    """Writes grids of the averaged generator's images of fixed latents, one row per class.

    Args:
        folder: folder that receives ``kimg_NNNNNN.png``.
        interval_kimg: thousands of images between two grids.
        class_names: name of each label.
        n: images per row.
    """

    def __init__(
        self, folder: str | os.PathLike[str], interval_kimg: float, class_names: Sequence[str], n: int = 16
    ) -> None:
        self.folder = Path(folder)
        self.interval_kimg = interval_kimg
        self.class_names = tuple(class_names)
        self.n = n

    def attach(self, engine: StyleGAN2Trainer) -> None:
        """Registers the grids every ``interval_kimg`` and at the end."""
        every_kimg(engine, self.interval_kimg, self.draw)

    def draw(self, engine: StyleGAN2Trainer) -> None:
        """Writes one grid."""
        generator = engine.average
        classes = len(self.class_names)
        images = sample_images(generator, *fixed_latents(self.n * classes, generator.z_dim, classes, engine.own_seed))
        path = self.folder / f"kimg_{engine.images_seen // 1000:06d}.png"
        rows = torch.cat([images[label::classes] for label in range(classes)])
        save_png(image_grid(rows, len(rows) // classes, self.class_names), path)
        engine.state.last_sample_grid = str(path)  # read by tracking handlers
