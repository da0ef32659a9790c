# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Weights on disk: a flat fp16 state dict (.pt, tensors only) and a JSON of the same name that says what it is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bundle.files import atomic_write, sha256_file, write_json

__all__ = ["NETWORKS", "WeightsError", "load_weights", "read_info", "register_network", "save_weights"]

FORMAT = 1
NETWORKS: dict[str, type[nn.Module]] = {}


class WeightsError(ValueError):
    """Weights that are absent, damaged, or do not belong to the network they are given to."""


def register_network(network_class: type[nn.Module]) -> type[nn.Module]:
    """Class decorator: lets weight files name this class. Its instances keep their constructor's ``arguments``."""
    NETWORKS[network_class.__name__] = network_class
    return network_class


def save_weights(network: nn.Module, path: str | os.PathLike[str], info: dict[str, Any]) -> None:
    """Writes the weights as fp16 and the JSON beside them; the JSON, written last, completes the pair.

    Args:
        network: an instance of a registered class, with its constructor's ``arguments``.
        path: the ``.pt`` file.
        info: what the JSON says besides the network: modality, resolution, classes, split hash, scores and so on.
    """
    path = Path(path)
    state = {
        key: (value.detach().cpu().half() if value.is_floating_point() else value.detach().cpu()).contiguous()
        for key, value in network.state_dict().items()
    }
    # Given a path, torch.save writes the temporary name into the file: equal weights would not be equal bytes.
    with atomic_write(path) as temporary, open(temporary, "wb") as stream:
        torch.save(state, stream)
    write_json(
        path.with_suffix(".json"),
        {
            **info,
            "format": FORMAT,
            "network": type(network).__name__,
            "arguments": network.arguments,
            "sha256": sha256_file(path),
        },
    )


def read_info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the JSON beside a ``.pt`` file.

    Raises:
        WeightsError: a file of the pair is absent, or the JSON is not one that `save_weights` wrote.
    """
    path = Path(path)
    for file in (path, path.with_suffix(".json")):
        if not file.is_file():
            raise WeightsError(
                f"{file} does not exist. Train it with this bundle's configs or name another models_dir."
            )
    try:
        info = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(
            f"{path.with_suffix('.json')} is not valid JSON ({error}). Copy the pair of files anew."
        ) from error
    if not isinstance(info, dict) or info.get("format") != FORMAT or info.get("network") not in NETWORKS:
        raise WeightsError(
            f"{path.with_suffix('.json')} is not of format {FORMAT} with a network of {', '.join(sorted(NETWORKS))}. "
            f"Use the release that wrote it."
        )
    return info


def load_weights(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> tuple[nn.Module, dict[str, Any]]:
    """Builds the network that the JSON names and fills it, every key and no other.

    Args:
        path: the ``.pt`` file, its JSON beside it.
        device: where the network goes.

    Returns:
        The network in fp32, in evaluation mode, taking no gradients; and the JSON's content.

    Raises:
        WeightsError: a file is absent or damaged, or the two do not belong together.
    """
    path = Path(path)
    info = read_info(path)
    if sha256_file(path) != info.get("sha256"):
        raise WeightsError(
            f"{path} is not the file that its JSON describes (other SHA-256). Copy the pair of files anew."
        )
    try:
        network = NETWORKS[info["network"]](**info["arguments"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path.with_suffix('.json')} does not describe a {info['network']} ({error}). Use the release that wrote "
            f"it."
        ) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises as many types as there are ways to damage a file
        raise WeightsError(f"{path} is not a PyTorch file of tensors. Copy the pair of files anew.") from error
    try:
        network.load_state_dict(state, strict=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path} does not fit {info['network']}({info['arguments']}): {error}. Copy the pair of files anew."
        ) from error
    return network.eval().requires_grad_(False).to(device), info
