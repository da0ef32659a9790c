# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""SqueezeNet 1.1 features, in which KID, the Fréchet distance and LPIPS are computed."""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

from bundle.networks.pretrained import TrunkUnavailable, imagenet_normalised, imagenet_weights, unsuitable
from bundle.precision import full_fp32

__all__ = ["FEATURES", "TrunkUnavailable", "squeezenet_features", "squeezenet_trunk"]

FEATURES = "SqueezeNet 1.1"
"""Name of the feature network, for the labels of all figures that are computed in its features."""

_SIDE = 224
_WEIGHTS = SqueezeNet1_1_Weights.IMAGENET1K_V1


def squeezenet_trunk(squeezenet_file: str | os.PathLike[str] | None = None) -> nn.Sequential:
    """Builds torchvision's SqueezeNet 1.1 without its classifier (Iandola et al., arXiv 1602.07360).

    The global random state is preserved, so that measuring during a training does not change the training.

    Args:
        squeezenet_file: file of the weights that torchvision publishes (``features.*`` keys; others are ignored). If
            None, torchvision downloads the weights or takes them from its cache.

    Returns:
        The 13 layers ``features.0`` to ``features.12``, in evaluation mode and with gradients disabled.

    Raises:
        TrunkUnavailable: the download failed, or the named file is missing or contains other weights.
    """
    with torch.random.fork_rng(devices=[]):
        trunk = squeezenet1_1(weights=None).features
    state = imagenet_weights(_WEIGHTS, squeezenet_file)
    prefix = "features."
    state = {key.removeprefix(prefix): value.float() for key, value in state.items() if key.startswith(prefix)}
    try:
        trunk.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise unsuitable(_WEIGHTS, squeezenet_file, "squeezenet_file") from error
    return trunk.eval().requires_grad_(False)


@full_fp32()
def squeezenet_features(
    images: Tensor,
    squeezenet_file: str | os.PathLike[str] | None = None,
    batch_size: int = 8,
    device: str | torch.device | None = None,
) -> Tensor:
    """Computes the features for KID and the Fréchet distance: the output of ``features.12``, averaged over the image.

    Images are resized to 224 x 224 pixels (bilinear, antialiased) and normalised with ImageNet's mean and standard
    deviation. They are computed in fp32, because bf16 distorts small values of KID.

    Args:
        images: images ``[N, C, H, W]`` in [-1, 1], C = 1 or 3; a single channel is repeated.
        squeezenet_file: file of the SqueezeNet weights, see `squeezenet_trunk`.
        batch_size: number of images processed at a time; the feature maps of more do not fit into a core's cache.
        device: device of the computation; None for that of the images.

    Returns:
        Features ``[N, 512]``, float32, at least 0, on the CPU.

    Raises:
        TrunkUnavailable: the SqueezeNet weights are not available.
        ValueError: the images have another shape.
    """
    images = as_rgb(images)
    device = images.device if device is None else torch.device(device)
    # On a CPU, channels_last was measured to be 2.4 times as fast as the default memory format.
    trunk = squeezenet_trunk(squeezenet_file).to(device).to(memory_format=torch.channels_last)
    features = torch.empty(len(images), 512)
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size].to(device, torch.float32)
            batch = F.interpolate(batch, size=(_SIDE, _SIDE), mode="bilinear", antialias=True, align_corners=False)
            batch = imagenet_normalised(batch).contiguous(memory_format=torch.channels_last)
            features[start : start + batch_size] = trunk(batch).mean(dim=(2, 3)).cpu()
    return features


def as_rgb(images: Tensor) -> Tensor:
    """Returns a view of the images with three channels; a single channel is repeated.

    Raises:
        ValueError: ``images`` is not ``[N, 1 or 3, H, W]``.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"Images are expected as [N, C, H, W] with 1 or 3 channels, not {list(images.shape)}. Stack them first."
        )
    return images.expand(-1, 3, -1, -1)
