# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Last step of a generating engine's postprocessing: images are written to files."""

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
    """Writes images as 8-bit PNG, upright, -1 as black and 1 as white, atomically.

    MONAI's SaveImaged transposes PNG images and rounds down.

    Args:
        keys: keys of the images, ``[1 or 3, H, W]`` in [-1, 1].
        folder: destination folder.
        name_key: key of the file name without suffix.
    """

    def __init__(self, keys: KeysCollection, folder: str | os.PathLike[str], name_key: str = "name") -> None:
        super().__init__(keys)
        self.folder = Path(folder)
        self.name_key = name_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Writes the images of one item and returns the item unchanged."""
        for key in self.key_iterator(data):
            save_png(Image.fromarray(to_uint8(data[key][None])[0]), self.folder / f"{data[self.name_key]}.png")
        return dict(data)
