# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Measures how well trained audit networks recognise patients in other images, on people whom they have not seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bundle.data import DataError, ImageData
from bundle.data.records import SPLITS
from bundle.networks.weights import WeightsError, load_weights, write_info
from bundle.training.audit_networks import AUDIT_NETWORKS, DIGEST, prove

__all__ = ["prove_networks"]


def prove_networks(
    models_dir: Path, data: ImageData, splits: Sequence[str], seed: int, record: bool
) -> dict[str, dict[str, Any]]:
    """Measures both audit networks.

    Args:
        models_dir: folder of the networks.
        data: images of people of whom several have several images; those with an image that a network was trained on
            are left out.
        splits: splits whose images are used.
        seed: seed of the choice of images, if there are too many, and of the bootstrap.
        record: whether the result replaces ``scores.other_images`` in the networks' JSON files.

    Returns:
        Result of `bundle.metrics.reidentification.recognition_of_others` by network.

    Raises:
        WeightsError: a network is missing, or is for another kind of image.
        DataError: there are no two different images of a person whom the networks have not seen.
    """
    loaded = {name: load_weights(models_dir / f"{name}.pt", required=("modality", "seen")) for name in AUDIT_NETWORKS}
    proofs = {}
    for name, (network, info) in loaded.items():
        if not isinstance(network, AUDIT_NETWORKS[name]) or info["modality"] != data.modality.name:
            raise WeightsError(f"{models_dir / name}.pt is for {info['modality']}. Name its --modality.")
        seen = set(info["seen"])
        known = {
            record.patient_id
            for record, digest in zip(data.records(SPLITS), data.digests(SPLITS), strict=True)
            if digest[:DIGEST] in seen
        }
        unseen = data.without_patients(known)
        proofs[name] = prove(network, unseen, seed, splits) if unseen.records(splits) else {"pairs": 0}
        if not proofs[name]["pairs"]:
            raise DataError(f"There are no images of people whom {name} has not seen, two different ones of one.")
        if record:
            info = {**info, "scores": {**info.get("scores", {}), "other_images": proofs[name]}}
            write_info(models_dir / f"{name}.pt", info)
    return proofs
