# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Loads the networks of a folder and checks that they belong together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bundle.networks.encoder import Encoder
from bundle.networks.latent_guides import LATENT_GUIDES, LatentGuide, LatentRealism
from bundle.networks.realism import RealismJudge
from bundle.networks.stylegan2 import Generator
from bundle.networks.weights import NETWORKS, WeightsError, load_weights, read_info

__all__ = ["GENERATION_NETWORKS", "ModelInfos", "ModelSet", "load_models", "read_infos"]

GENERATION_NETWORKS = (
    "generator",
    "identity_guide",
    "class_guide",
    "realism_guide",
    "gate_identity",
    "gate_class",
    "gate_realism",
)
# Entries that must be equal in all JSON files of a set, and the meaning of a difference.
COMMON = {
    "modality": "another kind of image",
    "resolution": "another resolution",
    "channels": "grey and colour",
    "preprocessing": "another treatment of the images before training",
    "class_names": "other classes",
    "split_sha256": "another split of the data: patients held out from one network trained another",
}

# Entries that every JSON file of a set must have, and further ones of single networks.
REQUIRED = ("modality", "resolution", "channels", "class_names", "split_sha256", "seed", "scores")
REQUIRED_OF = {
    "gate_identity": ("scores.threshold",),
    "gate_realism": ("scores.threshold", "scores.apart"),
    "latent_identity": ("training.generator_sha256", "training.teacher_sha256", "cpu_seconds"),
    "latent_class": ("training.generator_sha256", "training.teacher_sha256"),
    "latent_realism": ("training.generator_sha256", "training.teacher_sha256"),
    "encoder": ("training.generator_sha256",),
    "audit_embedding": ("seen",),
    "audit_verifier": ("seen",),
}


@dataclass(frozen=True)
class ModelInfos:
    """Descriptions of networks that were trained on one data set and split; the networks are not loaded.

    Attributes:
        infos: content of each network's JSON file, by name of the network.
    """

    infos: dict[str, dict[str, Any]]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label."""
        return tuple(self.infos["generator"]["class_names"])

    @property
    def split_sha256(self) -> str:
        """SHA-256 of the split file with which all networks were trained."""
        return str(self.infos["generator"]["split_sha256"])

    def sha256(self) -> dict[str, str]:
        """Returns the SHA-256 of each network's JSON file, which covers every entry and the hash of the weights."""
        return {name: str(info["json_sha256"]) for name, info in self.infos.items()}


@dataclass(frozen=True)
class ModelSet(ModelInfos):
    """Networks that were trained on one data set and split.

    Attributes:
        networks: networks by name, in evaluation mode and without gradients for their parameters.
    """

    networks: dict[str, nn.Module]

    @property
    def generator(self) -> Generator:
        """The generator G."""
        network = self.networks["generator"]
        assert isinstance(network, Generator)
        return network


def read_infos(models_dir: str | os.PathLike[str], names: Sequence[str] = GENERATION_NETWORKS) -> ModelInfos:
    """Reads the JSON files of a folder's networks and checks that the networks belong together.

    Args:
        models_dir: folder with ``<name>.pt`` and ``<name>.json`` for each name; the ``.pt`` files are not opened.
        names: names of the networks; the others are compared with the first, which usually is the generator.

    Raises:
        WeightsError: a file is missing, a JSON file is damaged, a network is unsuited to the role of its name, or two
            networks do not belong together.
    """
    infos: dict[str, dict[str, Any]] = {}
    for name in names:
        path = Path(models_dir) / f"{name}.pt"
        infos[name] = read_info(path, (*REQUIRED, *REQUIRED_OF.get(name, ())))
        problem = _role_problem(name, infos[name])
        if problem:
            raise WeightsError(
                f"{path} cannot be the {name}: {problem}. Copy the pair of files anew, or train it anew."
            )
    first = names[0]
    for name in names[1:]:
        for key, meaning in COMMON.items():
            if infos[name].get(key) != infos[first].get(key):
                raise WeightsError(
                    f"{Path(models_dir)}: {name} and {first} do not belong together: {key} differs ({meaning}). Train "
                    f"all networks on one dataset_dir with one output_dir, one resolution and one seed."
                )
    _check_different(Path(models_dir), infos)
    for name, (teacher, _) in LATENT_GUIDES.items():
        for original, key in ((first, "generator_sha256"), (teacher, "teacher_sha256")):
            if name in infos and original in infos and infos[name]["training"][key] != infos[original]["sha256"]:
                raise WeightsError(
                    f"{Path(models_dir)}: {name} was not distilled from this {original}. Train it anew with "
                    f"configs/train_latent_guides.json."
                )
    if {"encoder", "generator"} <= infos.keys():
        generator_sha256 = infos["encoder"]["training"]["generator_sha256"]
        if generator_sha256 != infos["generator"]["sha256"]:
            raise WeightsError(
                f"{Path(models_dir)}: encoder was trained for another generator. Train it anew with "
                f"configs/train_encoder.json."
            )
    return ModelInfos(infos)


def load_models(
    models_dir: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    names: Sequence[str] = GENERATION_NETWORKS,
) -> ModelSet:
    """Loads the networks of a folder.

    Args:
        models_dir: see `read_infos`.
        device: device of the networks.
        names: see `read_infos`.

    Raises:
        WeightsError: see `read_infos`; or the weights of a network are damaged.
    """
    infos = read_infos(models_dir, names).infos
    return ModelSet(infos, {name: load_weights(Path(models_dir) / f"{name}.pt", device)[0] for name in names})


def _check_different(folder: Path, infos: dict[str, dict[str, Any]]) -> None:
    """Refuses a network under two names: a gate equal to a guide would judge walks that were optimised against it."""
    names: dict[str, str] = {}
    for name, info in infos.items():
        other = names.setdefault(info["sha256"], name)
        if other != name:
            raise WeightsError(
                f"{folder}: {name} and {other} are the same network. Each must be its own: copy the pair of files of "
                f"one of them anew, or train it anew."
            )


def _role_problem(name: str, info: dict[str, Any]) -> str | None:
    """Returns the reason why a network is unsuited to the role of its name; None if it is suited."""
    kind = NETWORKS[info["network"]]
    if (name == "generator") != issubclass(kind, Generator) or (name in LATENT_GUIDES) != issubclass(kind, LatentGuide):
        return f"it is a {info['network']}"
    if (name == "encoder") != issubclass(kind, Encoder):
        return f"it is a {info['network']}"
    if (name in ("realism_guide", "gate_realism")) != issubclass(kind, RealismJudge):
        return f"it is a {info['network']}"
    if (name == "latent_realism") != issubclass(kind, LatentRealism):
        return f"it is a {info['network']}"
    if name.endswith(("identity_guide", "class_guide", "_identity", "_class")):
        wanted = "identity" in name
        if (info["arguments"].get("identity") is True) != wanted:
            return f"it does not tell {'patients' if wanted else 'classes'} apart"
    threshold = info["scores"].get("threshold")
    if name == "gate_identity" and not 0.0 < threshold <= 1.0:
        return f"its threshold is {threshold}, not a probability in (0, 1]"
    if name == "gate_realism" and len(info["scores"]["apart"]) != len(info["class_names"]):
        return f"its scores.apart are {info['scores']['apart']}, not a number for each class"
    return None
