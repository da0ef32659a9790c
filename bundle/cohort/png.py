# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The end of a generating engine's postprocessing: images become files."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform
from PIL import Image

from bundle.figures import save_png, to_uint8

__all__ = ["SavePNGd"]


class SavePNGd(MapTransform):
    """Writes images as 8-bit PNG, upright, -1 as black and 1 as white, each whole or not at all.

    MONAI's SaveImaged transposes PNG and rounds down.

    Args:
        keys: where the images are: ``[1 or 3, H, W]`` in [-1, 1].
        folder: where they go.
        name_key: where each one's file name without ending is.
    """

    def __init__(self, keys: KeysCollection, folder: str | os.PathLike[str], name_key: str = "name") -> None:
        super().__init__(keys)
        self.folder = Path(folder)
        self.name_key = name_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Writes the images of one item and hands it on as it is."""
        for key in self.key_iterator(data):
            save_png(Image.fromarray(to_uint8(data[key][None])[0]), self.folder / f"{data[self.name_key]}.png")
        return dict(data)
