# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Real images of another place, on which only the classifiers are tested."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bundle.auditing.images import RealImages
from bundle.data import DataError, DatasetDir, ImageData, open_dataset
from bundle.data.records import SPLITS

__all__ = ["external_images"]


def external_images(
    external_dir: DatasetDir | None,
    data: ImageData,
    output_dir: str,
    layout: str | Mapping[str, Any] = "auto",
) -> RealImages | None:
    """Loads images of another place, preprocessed as those of the evaluation; their splits do not matter.

    Args:
        external_dir: path of the folder of images, or of several; None or empty for none.
        data: the images of the evaluation.
        output_dir: output folder of the evaluation.
        layout: layout of ``external_dir``, see `bundle.data.open_dataset`.

    Raises:
        DataError: the images cannot be used, have other classes, or some of them are in the evaluation's data set.
    """
    if not external_dir:
        return None
    home = Path(output_dir) / "private" / "external"
    other = open_dataset(external_dir, home, data.modality, data.resolution, layout=layout)
    if list(other.class_names) != list(data.class_names):
        raise DataError(
            f"external_dir: the classes are {', '.join(other.class_names)}, those of dataset_dir "
            f"{', '.join(data.class_names)}. Give images of the same classes, with the same names and labels."
        )
    shared = len(set(other.digests(SPLITS)) & set(data.digests(SPLITS)))
    if shared:
        raise DataError(
            f"external_dir: {shared} of its images are in dataset_dir as well, pixel by pixel, so that they are no "
            "test from elsewhere. Remove them from one of the two."
        )
    return RealImages.load(other, SPLITS)
