# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The file of real images' latents, which is as private as the images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bundle.files import DamagedError, load_tensors, save_tensors
from bundle.latent.inverter import InversionError

__all__ = ["LATENTS", "PARTS", "RealLatents", "load_latents", "save_latents", "spread_out"]

#: File of the latents, and folder of the parts of an inversion that has not ended, in the private folder.
LATENTS, PARTS = "latents.pt", "inversion_parts"
FORMAT = 1


@dataclass(frozen=True)
class RealLatents:
    """Latents of real images, in the order of the images' names.

    Attributes:
        w: latents w+ [N, layers, w_dim], float32.
        lpips: LPIPS of each image to its inversion, [N].
        pixels: root mean squared error of the pixels of each inversion, [N].
        labels: class of each image.
        patient_ids: patient of each image.
        digests: SHA-256 of each image's decoded pixels.
        splits: split of each image.
        split_sha256: SHA-256 of the split file that says so; if it is not the generator's, no split says whether the
            generator was trained on an image.
        generator_sha256: SHA-256 of the generator's weights.
        class_names: name of each label.
        settings: what else the latents depend on, plain values.
    """

    w: Tensor
    lpips: Tensor
    pixels: Tensor
    labels: list[int]
    patient_ids: list[str]
    digests: list[str]
    splits: list[str]
    split_sha256: str
    generator_sha256: str
    class_names: list[str]
    settings: dict[str, Any]

    def indices(self, splits: Sequence[str]) -> list[int]:
        """Returns the indices of the images of some splits."""
        return [index for index, split in enumerate(self.splits) if split in splits]


def spread_out(indices: Sequence[int], most: int) -> list[int]:
    """Returns up to ``most`` indices that are spread over all."""
    return list(indices[:: max(1, len(indices) // most)][:most])


def save_latents(path: str | os.PathLike[str], latents: RealLatents) -> None:
    """Writes tensors and plain values, which `torch.load` reads with ``weights_only=True``."""
    save_tensors(path, {"format": FORMAT, **asdict(latents)})


def load_latents(path: str | os.PathLike[str], generator_sha256: str | None = None) -> RealLatents:
    """Reads a file of latents.

    Args:
        path: file that `save_latents` wrote.
        generator_sha256: SHA-256 of the weights of the generator that shall synthesise them; None for any.

    Raises:
        InversionError: there is no such file, its inversion was interrupted, or it has another format or generator.
        DamagedError: the file is damaged.
    """
    path = Path(path)
    if not path.is_file():
        if (path.parent / PARTS).is_dir():
            raise InversionError(f"{path} is not complete: its inversion was interrupted. Run the same command again.")
        raise InversionError(f"{path} does not exist. Invert the images with configs/invert.json.")
    content = load_tensors(path)
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise InversionError(f"{path} is no file of latents of format {FORMAT}. Invert the images anew.")
    try:
        latents = RealLatents(**content)
        columns = (latents.w, latents.lpips, latents.pixels, latents.labels, latents.patient_ids, latents.digests)
        if {len(column) for column in (*columns, latents.splits)} != {len(latents.w)}:
            raise ValueError("the columns have different lengths")
    except (TypeError, ValueError) as error:
        raise DamagedError(f"{path} is damaged. Remove it and run the same command again.") from error
    if generator_sha256 not in (None, latents.generator_sha256):
        raise InversionError(
            f"{path} holds latents of another generator ({latents.generator_sha256[:8]}, not {generator_sha256[:8]}). "
            f"Name the models_dir of its inversion, or invert the images anew with another output_dir."
        )
    return latents
