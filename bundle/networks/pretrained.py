# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Loads torchvision's ImageNet weights, by download or from a file."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import WeightsEnum

__all__ = ["TrunkUnavailable", "fill_folded", "imagenet_normalised", "imagenet_weights", "read_weights", "unsuitable"]

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
    return _download(weights, option) if file is None else read_weights(Path(file), option, _cure(weights, option))


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


def read_weights(path: Path, option: str, cure: str) -> dict[str, Tensor]:
    """Reads a PyTorch file of tensors.

    Args:
        path: path of the file.
        option: name of the option for it, for messages.
        cure: what to do if it cannot be read, as a sentence.

    Raises:
        TrunkUnavailable: the file is missing or no PyTorch file of tensors.
    """
    if not path.is_file():
        raise TrunkUnavailable(f"{option} {path} does not exist. {cure}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types of errors for damaged files
        raise TrunkUnavailable(f"{option} {path} is not a PyTorch file of tensors. {cure}") from error
    return state if isinstance(state, dict) else {}


def fill_folded(
    weight: Tensor, bias: Tensor, state: dict[str, Tensor], convolution: str, norm: str, epsilon: float
) -> None:
    """Fills weight and bias of a convolution, in place, with a convolution and the batch norm that follows it.

    Args:
        weight: [out_channels, in_channels / groups, k, k].
        bias: [out_channels].
        state: state dict of the complete network.
        convolution: name of the convolution in it.
        norm: name of the batch norm.
        epsilon: what the batch norm adds to the variance.

    Raises:
        KeyError: there is no such layer.
        ValueError: its shape differs.
    """
    gain = state[f"{norm}.weight"].double() / (state[f"{norm}.running_var"].double() + epsilon).sqrt()
    folded = state[f"{convolution}.weight"].double() * gain.view(-1, 1, 1, 1)
    if folded.shape != weight.shape:
        raise ValueError(f"{convolution}.weight has shape {list(folded.shape)}, not {list(weight.shape)}.")
    weight.copy_(folded)
    bias.copy_(state[f"{norm}.bias"].double() - state[f"{norm}.running_mean"].double() * gain)
