# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Loads torchvision's ImageNet weights, by download or from a file."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import WeightsEnum

__all__ = ["TrunkUnavailable", "imagenet_normalised", "imagenet_weights", "unsuitable"]

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class TrunkUnavailable(RuntimeError):
    """ImageNet weights cannot be downloaded or read from the given file."""


def imagenet_weights(
    weights: WeightsEnum, file: str | os.PathLike[str] | None = None, option: str = "squeezenet_file"
) -> dict[str, Tensor]:
    """Returns the state dict of torchvision's weights.

    Args:
        weights: torchvision's entry for the weights.
        file: path of the weights; None lets torchvision download them or use its cache.
        option: name of the option for ``file``, for messages.

    Raises:
        TrunkUnavailable: no file is given and the download failed, or the file is missing or no PyTorch file of
            tensors.
    """
    return _download(weights, option) if file is None else _read(weights, Path(file), option)


def imagenet_normalised(images: Tensor) -> Tensor:
    """Normalises RGB images [B, 3, H, W] in [-1, 1] by ImageNet's mean and standard deviation, as in pretraining."""
    mean, std = (torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (_MEAN, _STD))
    return ((images + 1) / 2 - mean) / std


def unsuitable(weights: WeightsEnum, file: str | os.PathLike[str] | None, option: str) -> TrunkUnavailable:
    """Returns the error for a file that holds the weights of another network."""
    return TrunkUnavailable(f"{option} {file} does not hold {_name(weights)}'s weights. {_cure(weights, option)}")


def _name(weights: WeightsEnum) -> str:
    return type(weights).__name__.removesuffix("_Weights")


def _cure(weights: WeightsEnum, option: str) -> str:
    return f"Name the file that {weights.url} serves, or leave {option} out to let torchvision download it."


def _download(weights: WeightsEnum, option: str) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise TrunkUnavailable(
            f"The ImageNet weights of {_name(weights)} could not be downloaded from {weights.url} ({error}). Connect "
            f"to the internet, or fetch that file elsewhere and name it with {option}."
        ) from error
    return state


def _read(weights: WeightsEnum, path: Path, option: str) -> dict[str, Tensor]:
    cure = _cure(weights, option)
    if not path.is_file():
        raise TrunkUnavailable(f"{option} {path} does not exist. {cure}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types of errors for damaged files
        raise TrunkUnavailable(f"{option} {path} is not a PyTorch file of tensors. {cure}") from error
    return state if isinstance(state, dict) else {}
