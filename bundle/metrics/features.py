# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""SqueezeNet 1.1 features: the space in which KID, Frechet distance and LPIPS are taken."""

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
"""Name of the feature network, for the column of any figure that is taken in its features."""

_SIDE = 224
_WEIGHTS = SqueezeNet1_1_Weights.IMAGENET1K_V1


def squeezenet_trunk(squeezenet_file: str | os.PathLike[str] | None = None) -> nn.Sequential:
    """Builds torchvision's SqueezeNet 1.1 without its classifier (Iandola et al., arXiv 1602.07360).

    The global random state is left as it was, so that measuring in the middle of a training changes nothing in it.

    Args:
        squeezenet_file: weights as torchvision publishes them (``features.*`` keys; others are ignored). Without it,
            torchvision downloads them or takes them from its own cache.

    Returns:
        The 13 layers ``features.0`` to ``features.12``, in evaluation mode, taking no gradients.

    Raises:
        TrunkUnavailable: no file was named and the download failed, or the file is absent or holds other weights.
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
    batch_size: int = 64,
    device: str | torch.device | None = None,
) -> Tensor:
    """Features for KID and the Frechet distance: ``features.12``, averaged over the image.

    Images are resized to 224 (bilinear, antialiased) and normalised with ImageNet's mean and deviation. All is done in
    fp32, 11 CPU-milliseconds an image: bf16 would halve that, and move the small differences that KID is made of.

    Args:
        images: ``[N, C, H, W]`` in [-1, 1]; C is 3, or 1, which is repeated.
        squeezenet_file: see `squeezenet_trunk`.
        batch_size: images in memory at 224 px at a time.
        device: where to compute; by default where the images are.

    Returns:
        ``[N, 512]`` float32, not negative, on the CPU.

    Raises:
        TrunkUnavailable: the network's weights are not to be had.
        ValueError: the images have another shape.
    """
    images = as_rgb(images)
    device = images.device if device is None else torch.device(device)
    # Measured on a CPU: 2.4 times as fast as the default memory format.
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
    """Returns a view of ``images`` with three channels; grey is repeated.

    Raises:
        ValueError: ``images`` is not ``[N, 1 or 3, H, W]``.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"Images are expected as [N, C, H, W] with 1 or 3 channels, not {list(images.shape)}. Stack them first."
        )
    return images.expand(-1, 3, -1, -1)
