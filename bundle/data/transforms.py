# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""MONAI dictionary transforms from an image file to the input of a network."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import (
    CenterScaleCropd,
    Compose,
    EnsureTyped,
    LoadImaged,
    MapTransform,
    ScaleIntensityRanged,
    SpatialPadd,
)
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from bundle.data.errors import DataError
from bundle.data.modality import Modality, get_modality
from bundle.data.readers import UprightReader
from bundle.data.retina import CropRetinad, check_retina

__all__ = [
    "BORDER",
    "PREPROCESSINGS",
    "MatchHistogramd",
    "Preprocessing",
    "ResizeLongestd",
    "fitting_preprocessings",
    "get_preprocessing",
    "image_transform",
]


#: Fraction of the width and height that the preprocessings called "crop" remove on each side.
BORDER = 0.08


class ResizeLongestd(MapTransform):
    """Resizes [C, H, W] to ``resolution`` pixels on the longer side: bilinear, antialiased, same aspect ratio."""

    def __init__(self, keys: KeysCollection, resolution: int) -> None:
        super().__init__(keys)
        self.resolution = resolution

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns the dictionary with resized images; values are in [0, 1] before and after."""
        result = dict(data)
        for key in self.key_iterator(result):
            image: torch.Tensor = result[key]
            height, width = image.shape[-2:]
            scale = self.resolution / max(height, width)
            size = [max(1, round(height * scale)), max(1, round(width * scale))]
            result[key] = interpolate(image[None], size, mode="bilinear", antialias=True)[0].clamp(0.0, 1.0)
        return result


class MatchHistogramd(MapTransform):
    """Matches the brightness histogram of every image [C, H, W] in [0, 1] to a reference; the order of pixels is kept.

    Each pixel's quantile in its own image (equal pixels get their middle quantile) is looked up in the reference.

    Args:
        keys: keys of the images in the dictionary.
        reference: brightness in [0, 1] at equally spaced quantiles, darkest first.
    """

    def __init__(self, keys: KeysCollection, reference: Sequence[float]) -> None:
        super().__init__(keys)
        self.reference = torch.tensor(reference, dtype=torch.float64).numpy()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Returns the dictionary with matched images; values are in [0, 1] before and after."""
        result = dict(data)
        for key in self.key_iterator(result):
            values = result[key].numpy()
            ordered = np.sort(values, axis=None)
            below, upto = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
            quantiles = (below + upto) / (2.0 * values.size)
            matched = np.interp(quantiles, np.linspace(0.0, 1.0, len(self.reference)), self.reference)
            result[key] = torch.from_numpy(matched.astype(np.float32))
        return result


def _crop_border(modality: Modality) -> list[MapTransform]:
    # Frames, film edges, labels and burned-in text are close to the border; the lungs rarely reach it.
    return [CenterScaleCropd(keys="image", roi_scale=1.0 - 2.0 * BORDER)]


def _nothing(modality: Modality) -> list[MapTransform]:
    return []


def _match(modality: Modality) -> list[MapTransform]:
    return [MatchHistogramd("image", modality.reference_histogram)]


@dataclass(frozen=True)
class Preprocessing:
    """Transforms that are applied to an upright image [C, H, W] in [0, 1] before it is given to networks.

    Attributes:
        before: function that returns the transforms before resizing.
        after: function that returns the transforms after resizing.
        check: function that raises :class:`bundle.data.readers.ReadError` for an image that the transforms do not suit.
        channels: numbers of channels of the images that the preprocessing is suited to.
    """

    before: Callable[[Modality], list[MapTransform]] = _nothing
    after: Callable[[Modality], list[MapTransform]] = _nothing
    check: Callable[[NDArray[np.float32]], None] = lambda image: None
    channels: tuple[int, ...] = (1, 3)


#: Preprocessings by name. They reduce features that reveal the source of an image; docs/data.md has the measurements.
PREPROCESSINGS: dict[str, Preprocessing] = {
    "plain": Preprocessing(),
    "crop": Preprocessing(_crop_border),
    "histogram": Preprocessing(after=_match),
    "crop_histogram": Preprocessing(_crop_border, _match),
    "retina": Preprocessing(lambda modality: [CropRetinad("image")], check=check_retina, channels=(3,)),
}


def fitting_preprocessings(channels: int) -> list[str]:
    """Returns the names of the preprocessings that are suited to images of so many channels (1 or 3)."""
    return [name for name, entry in PREPROCESSINGS.items() if channels in entry.channels]


def get_preprocessing(modality: Modality) -> Preprocessing:
    """Returns the preprocessing that a preset names.

    Raises:
        DataError: there is none of this name, or it is not suited to the preset's number of channels.
    """
    fitting = fitting_preprocessings(modality.channels)
    if modality.preprocessing not in fitting:
        raise DataError(
            f"modality {modality.name!r}: unknown preprocessing {modality.preprocessing!r}; use one of "
            f"{', '.join(fitting)} (those for channels={modality.channels})"
        )
    return PREPROCESSINGS[modality.preprocessing]


def _load_image(channels: int) -> LoadImaged:
    # LoadImaged also builds MONAI's own readers without using them; one of them warns about a missing GPU decoder once
    # per data set.
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
        reader: Any = UprightReader(channels)  # Any, since instances are accepted but missing in the type annotation
        return LoadImaged(keys="image", reader=reader)


def image_transform(modality: str | Modality, resolution: int) -> Compose:
    """Returns the transform that turns the key ``image`` from a path into the input of a network.

    Args:
        modality: preset of the kind of image, or its name.
        resolution: side of the square result in pixels.

    Returns:
        Dictionary transform; ``image`` becomes a float32 tensor [C, resolution, resolution] in [-1, 1], upright, with
        its aspect ratio kept, centred and padded with black (-1). Other keys are unchanged.

    Raises:
        DataError: the modality or its preprocessing is unknown, or the resolution is below 1.
    """
    preset = get_modality(modality)
    preprocessing = get_preprocessing(preset)
    if resolution < 1:
        raise DataError(f"resolution is {resolution}; use a positive number of pixels")
    return Compose(
        [
            _load_image(preset.channels),
            EnsureTyped(keys="image", dtype=torch.float32, track_meta=False),
            *preprocessing.before(preset),
            ResizeLongestd(keys="image", resolution=resolution),
            *preprocessing.after(preset),
            SpatialPadd(keys="image", spatial_size=(resolution, resolution)),
            ScaleIntensityRanged(keys="image", a_min=0.0, a_max=1.0, b_min=-1.0, b_max=1.0),
            EnsureTyped(keys="image", dtype=torch.float32, track_meta=False),
        ]
    )
