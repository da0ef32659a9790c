# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Private figures that compare walked with straight paths, for the makers of a cohort and not for its partners."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import Tensor

from bundle.cohort.comparison import compare_paths, comparison_table
from bundle.cohort.ledger import WalkLedger
from bundle.data import ImageData
from bundle.figures import from_uint8, save_png
from bundle.figures.walks import path_picture, save_loss_histories, save_nearest
from bundle.files import write_json
from bundle.gate.drawing import synthesise
from bundle.gate.gate import Gate
from bundle.markup import printable
from bundle.metrics.features import FEATURES, TrunkUnavailable
from bundle.metrics.lpips import lpips_model, nearest
from bundle.networks.model_set import ModelSet

__all__ = ["NEAREST", "look_at_paths"]

logger = logging.getLogger(__name__)

#: File name of the figure of distances to the nearest training images.
NEAREST = "nearest.png"

# Pairs per class that the private figures show, and that the comparison of walked and straight paths measures.
PICTURED_PAIRS = 2
COMPARED_PAIRS = 8


def look_at_paths(
    ledger: WalkLedger, models: ModelSet, gate: Gate, folder: Path, data: ImageData | None, squeezenet_file: str | None
) -> None:
    """Plots and measures walked paths beside straight ones, in the private folder."""
    compared: list[tuple[int, Tensor, Tensor]] = []
    pictured: list[tuple[str, Tensor, Tensor]] = []
    loss_histories: list[tuple[str, Tensor]] = []
    for label in ledger.quotas:
        for index, record in zip(range(COMPARED_PAIRS), ledger.records(label), strict=False):
            linear, plan = map(from_uint8, (synthesise(models.generator, record["w_linear"]), record["image"]))
            compared.append((label, linear, plan))
            if index < PICTURED_PAIRS:
                caption = f"{printable(models.class_names[label])} {index}"
                pictured.append((caption, linear, plan))
                loss_histories.append((caption, record["loss_history"]))
    save_png(path_picture(pictured), folder / "paths.png")
    save_loss_histories(loss_histories, folder / "losses.png")
    distance = None
    if data is not None or squeezenet_file is not None:  # LPIPS may need a download: only on request
        try:
            distance = lpips_model(squeezenet_file)
        except TrunkUnavailable as error:
            logger.warning("Neither the paths' variety nor the distance to the nearest image is measured: %s", error)
    reals = None if data is None else data.tensors(("train", "extra"))[0]
    comparison = compare_paths(compared, models.networks["identity_guide"], gate, distance, reals)
    write_json(folder / "paths.json", comparison)
    print(f"{len(compared)} paths, straight and walked:\n{comparison_table(comparison)}")
    if distance is not None and reals is not None:
        curves = [
            (caption, nearest(linear, reals, distance), nearest(plan, reals, distance))
            for caption, linear, plan in pictured
        ]
        save_nearest(curves, FEATURES, len(reals), folder / NEAREST)
