# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The real images that networks were trained on, opened as they were then."""

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
    """Opens the real images that the models were trained on; None where no folder is given.

    Args:
        dataset_dir: the folder, or several.
        models_dir: of the models; beside it may lie the split file of the training.
        output_dir: of this command.
        models: the networks, whose JSONs name the kind of image.
        layout: see `bundle.data.open_dataset`.
        modality: preset; where the models are of another kind of image, the preset that they name.

    Raises:
        DataError: the models were trained on other images or another split of them.
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
