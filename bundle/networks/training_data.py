# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Opens the real images that networks were trained on, with the same preset and splits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bundle.data import DataError, DatasetDir, ImageData, Modality, open_dataset
from bundle.data.splits import splits_home
from bundle.networks.model_set import ModelSet

__all__ = ["open_training_data"]


def open_training_data(
    dataset_dir: DatasetDir | None,
    models_dir: str,
    output_dir: str,
    models: ModelSet,
    layout: str | Mapping[str, Any] = "auto",
    modality: str | Modality = "",
) -> ImageData | None:
    """Opens the real images that the models were trained on.

    Args:
        dataset_dir: path of the folder of images, or of several; None for none.
        models_dir: folder of the models, in whose parent the training may have stored its split file.
        output_dir: output folder of this command.
        models: the networks, whose JSON files name modality, resolution and seed.
        layout: see `bundle.data.open_dataset`.
        modality: preset of the kind of image, used if it has the name of the models' modality; otherwise, the preset of
            that name is used.

    Returns:
        The images, or None where no folder is given.

    Raises:
        DataError: the data cannot be used, or the models were trained on other images or other splits.
    """
    if not dataset_dir:
        return None
    info = models.infos["generator"]
    home = splits_home(models_dir, output_dir)
    preset = modality if str(modality) == info["modality"] else info["modality"]
    data = open_dataset(dataset_dir, home, preset, info["resolution"], info["seed"], layout)
    if data.split_sha256 != models.split_sha256:
        raise DataError(
            f"dataset_dir: {dataset_dir} is not what the models in {models_dir} were trained on, or it is split "
            f"otherwise (hash of the split file). Name the folder of the training images, or leave dataset_dir out."
        )
    return data
