# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""What every trained network's JSON says of the data behind it."""

from __future__ import annotations

from typing import Any

from bundle.data import ImageData

__all__ = ["DATA_KEYS", "weights_info"]

#: What `weights_info` says of the data, the seed apart.
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
    """Describes the data and the seed, without a name of an image, a patient or a folder.

    Args:
        data: what the network is trained on.
        seed: of the training.

    Returns:
        Plain values, the part of a weight file's JSON that is the same for all networks of one training set.
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
