# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Function of configs/train_guides.json that evaluates trained identity networks."""

from __future__ import annotations

from pathlib import Path

from bundle.data import ImageData
from bundle.metrics.recognition import recognition_scores
from bundle.networks.weights import WeightsError, load_weights
from bundle.training.guide_trainer import ROLES
from bundle.training.network_trainer import flat_numbers

__all__ = ["print_recognition"]


def print_recognition(data: ImageData, models_dir: str | Path) -> None:
    """Evaluates the identity networks of a models folder and prints the scores as a table.

    Args:
        data: data set that the networks were trained on.
        models_dir: folder that holds identity_guide and gate_identity.

    Raises:
        WeightsError: a network is missing, or was trained on other splits or at another resolution.
    """
    known, _, identities = data.tensors(("train", "extra"))
    val, test = (data.tensors(split)[0] for split in ("val", "test"))
    names = [name for name in ROLES if ROLES[name].identity]
    scores = {}
    for name in names:
        network, info = load_weights(Path(models_dir) / f"{name}.pt", required=("split_sha256", "resolution"))
        if info["split_sha256"] != data.split_sha256 or info["resolution"] != data.resolution:
            raise WeightsError(
                f"{Path(models_dir) / name}.pt was trained at {info['resolution']} px on the splits "
                f"{info['split_sha256'][:8]}; this dataset has {data.resolution} px and {data.split_sha256[:8]}. "
                "Name the output_dir and the resolution of that training."
            )
        scores[name] = flat_numbers(recognition_scores(network, known, identities, val, test))
    width = max(map(len, scores[names[0]]))
    print(f"{'measure':{width}}  " + "  ".join(f"{name:>14}" for name in names))
    for measure in scores[names[0]]:
        print(f"{measure:{width}}  " + "  ".join(f"{scores[name].get(measure, float('nan')):14.3f}" for name in names))
