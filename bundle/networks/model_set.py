# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""A folder of weights that were made for each other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bundle.networks.latent_guides import LATENT_GUIDES
from bundle.networks.stylegan2 import Generator
from bundle.networks.weights import WeightsError, load_weights

__all__ = ["GENERATION_NETWORKS", "ModelSet", "load_models"]

GENERATION_NETWORKS = ("generator", "identity_guide", "class_guide", "gate_identity", "gate_class")
# What must be equal in all JSONs of a set, and what it means when it is not.
COMMON = {
    "modality": "another kind of image",
    "resolution": "another resolution",
    "channels": "grey and colour",
    "preprocessing": "another treatment of the images before training",
    "class_names": "other classes",
    "split_sha256": "another split of the data: patients held out from one network trained another",
}


@dataclass(frozen=True)
class ModelSet:
    """Networks of one data set and split.

    Attributes:
        networks: by name, in evaluation mode, taking no gradients.
        infos: content of each one's JSON.
    """

    networks: dict[str, nn.Module]
    infos: dict[str, dict[str, Any]]

    @property
    def generator(self) -> Generator:
        """G."""
        network = self.networks["generator"]
        assert isinstance(network, Generator)
        return network

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label."""
        return tuple(self.infos["generator"]["class_names"])

    @property
    def split_sha256(self) -> str:
        """SHA-256 of the split file that all networks were trained with."""
        return str(self.infos["generator"]["split_sha256"])


def load_models(
    models_dir: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    names: Sequence[str] = GENERATION_NETWORKS,
) -> ModelSet:
    """Loads the networks of a folder.

    Args:
        models_dir: holds ``<name>.pt`` and ``<name>.json`` for each name.
        device: where the networks go.
        names: which; the first, as a rule the generator, is the one that the others are compared with.

    Raises:
        WeightsError: one is missing or damaged, or two do not belong together.
    """
    networks, infos = {}, {}
    for name in names:
        networks[name], infos[name] = load_weights(Path(models_dir) / f"{name}.pt", device)
    first = names[0]
    for name in names[1:]:
        for key, meaning in COMMON.items():
            if infos[name].get(key) != infos[first].get(key):
                raise WeightsError(
                    f"{Path(models_dir)}: {name} and {first} do not belong together: {key} differs ({meaning}). Train "
                    f"all networks on one dataset_dir with one output_dir, one resolution and one seed."
                )
    for name, (teacher, _) in LATENT_GUIDES.items():
        for original, key in ((first, "generator_sha256"), (teacher, "teacher_sha256")):
            if name in infos and original in infos and infos[name]["training"][key] != infos[original]["sha256"]:
                raise WeightsError(
                    f"{Path(models_dir)}: {name} was not distilled from this {original}. Train it anew with "
                    f"configs/train_latent_guides.json."
                )
    return ModelSet(networks, infos)
