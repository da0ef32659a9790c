# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""From a file to the network's input, as MONAI dictionary transforms."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import Compose, EnsureTyped, LoadImaged, MapTransform, ScaleIntensityRanged, SpatialPadd
from torch.nn.functional import interpolate

from bundle.data.errors import DataError
from bundle.data.modality import Modality, get_modality
from bundle.data.readers import UprightReader

__all__ = ["PREPROCESSINGS", "ResizeLongestd", "image_transform"]


class ResizeLongestd(MapTransform):
    """Resizes [C, H, W] so that the longer side gets ``resolution`` pixels: bilinear, antialiased, aspect kept."""

    def __init__(self, keys: KeysCollection, resolution: int) -> None:
        super().__init__(keys)
        self.resolution = resolution

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns the dictionary with the images at their new size; values are in [0, 1] before and after."""
        result = dict(data)
        for key in self.key_iterator(result):
            image: torch.Tensor = result[key]
            height, width = image.shape[-2:]
            scale = self.resolution / max(height, width)
            size = [max(1, round(height * scale)), max(1, round(width * scale))]
            result[key] = interpolate(image[None], size, mode="bilinear", antialias=True)[0].clamp(0.0, 1.0)
        return result


#: What happens to an upright image [C, H, W] in [0, 1]: transforms before and after it is resized.
PREPROCESSINGS: dict[str, Callable[[], tuple[list[MapTransform], list[MapTransform]]]] = {
    "plain": lambda: ([], []),
}


def _load_image(channels: int) -> LoadImaged:
    # LoadImaged also builds MONAI's own readers, which it then never asks; one of them complains about a GPU decoder
    # that is not installed, once per data set.
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
        return LoadImaged(keys="image", reader=UprightReader(channels))


def image_transform(modality: str | Modality, resolution: int) -> Compose:
    """Returns the transform of the key ``image`` from a path to a network's input.

    Args:
        modality: preset that names channels and preprocessing.
        resolution: side of the square result in pixels.

    Returns:
        Transform of dictionaries; ``image`` becomes a float32 tensor [C, resolution, resolution] in [-1, 1], upright,
        aspect kept, centred on black (-1). Other keys pass through.

    Raises:
        DataError: the modality or its preprocessing is unknown, or the resolution is below 1.
    """
    preset = get_modality(modality)
    if preset.preprocessing not in PREPROCESSINGS:
        raise DataError(
            f"modality {preset.name!r}: unknown preprocessing {preset.preprocessing!r}; "
            f"use one of {', '.join(PREPROCESSINGS)}"
        )
    if resolution < 1:
        raise DataError(f"resolution is {resolution}; use a positive number of pixels")
    before, after = PREPROCESSINGS[preset.preprocessing]()
    return Compose(
        [
            _load_image(preset.channels),
            EnsureTyped(keys="image", dtype=torch.float32, track_meta=False),
            *before,
            ResizeLongestd(keys="image", resolution=resolution),
            *after,
            SpatialPadd(keys="image", spatial_size=(resolution, resolution)),
            ScaleIntensityRanged(keys="image", a_min=0.0, a_max=1.0, b_min=-1.0, b_max=1.0),
            EnsureTyped(keys="image", dtype=torch.float32, track_meta=False),
        ]
    )
