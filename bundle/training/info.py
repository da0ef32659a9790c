# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Description of the training data that every trained network's JSON records."""

from __future__ import annotations

from typing import Any

from bundle.data import ImageData

__all__ = ["DATA_KEYS", "weights_info"]

#: Keys of `weights_info` that describe the data, without the seed.
DATA_KEYS = (
    "modality",
    "preprocessing",
    "resolution",
    "channels",
    "class_names",
    "split_sha256",
    "n_images",
    "n_identities",
)


def weights_info(data: ImageData, seed: int) -> dict[str, Any]:
    """Describes the training data and the seed without naming any image, patient or folder.

    Args:
        data: data set that the network is trained on.
        seed: random seed of the training.

    Returns:
        Plain values: the part of a weight file's JSON that all networks of one training set share.
    """
    return {
        "modality": data.modality.name,
        "preprocessing": data.modality.preprocessing,
        "resolution": data.resolution,
        "channels": data.modality.channels,
        "class_names": list(data.class_names),
        "split_sha256": data.split_sha256,
        "n_images": len(data.records(("train", "extra"))),
        "n_identities": data.n_identities,
        "seed": seed,
    }
