# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""LPIPS between many images, computed as squared distances of vectors so that each pair costs one dot product."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bundle.metrics.features import as_rgb, squeezenet_trunk
from bundle.precision import full_fp32

if TYPE_CHECKING:  # imported at run time only where it is used: training does not need the package
    import lpips

__all__ = ["LPIPS_TRUNK", "embed", "lpips_model", "mean_pairwise", "nearest", "pairwise", "pairwise_within"]

LPIPS_TRUNK = "LPIPS (SqueezeNet 1.1, v0.1)"
"""Name of this variant of LPIPS, for the labels of all figures that report it."""

# Images that are compared with the kept ones at once; larger matrix products are faster.
_BATCH = 64
# Images that pass through the network at once; the feature maps of more do not fit into a core's cache.
_BLOCK = 8
_MEMORY = 512 * 2**20


def lpips_model(squeezenet_file: str | os.PathLike[str] | None = None) -> lpips.LPIPS:
    """Builds LPIPS 0.1 with the SqueezeNet trunk (Zhang et al., arXiv 1801.03924).

    The linear layers come with the lpips package. The global random state is preserved.

    Args:
        squeezenet_file: file of the trunk's weights, see `bundle.metrics.features.squeezenet_trunk`.

    Returns:
        The model for images in [-1, 1], in evaluation mode and with gradients disabled.

    Raises:
        TrunkUnavailable: the SqueezeNet weights are not available.
    """
    import lpips

    trunk = squeezenet_trunk(squeezenet_file).state_dict()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # The package builds its trunk with arguments that torchvision has deprecated; users cannot change that.
        warnings.simplefilter("ignore", UserWarning)
        model = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    for name, parameter in model.net.named_parameters():
        with torch.no_grad():
            parameter.copy_(trunk.pop(name.split(".", 1)[1]))
    if trunk:
        raise RuntimeError(
            f"The lpips package has no place for {sorted(trunk)}. Install the version in requirements.lock."
        )
    return model.eval().requires_grad_(False)


def embed(images: Tensor, model: lpips.LPIPS) -> Tensor:
    """Maps images to vectors whose squared Euclidean distances are LPIPS distances.

    LPIPS is ``sum_l mean_hw sum_c v_lc (f_lchw - g_lchw)^2`` over features f and g that have unit length at each
    position (equation 1 of the paper). Since every v is at least 0, it is the squared Euclidean distance between f and
    g after both are scaled by ``sqrt(v / HW)``.

    Args:
        images: images ``[N, 1 or 3, H, W]`` in [-1, 1], on the model's device.
        model: LPIPS network from `lpips_model`.

    Returns:
        Vectors ``[N, D]``, float32; D is about 119 000 at 64 px and 522 000 at 128 px.
    """
    return torch.cat([_embedded(block, model) for block in as_rgb(images).float().split(_BLOCK)])


def _embedded(images: Tensor, model: lpips.LPIPS) -> Tensor:
    import lpips

    parts = []
    for features, linear in zip(model.net(model.scaling_layer(images)), model.lins, strict=True):
        weight = linear.model[-1].weight
        scale = (weight / features[0, 0].numel()).sqrt()
        parts.append((lpips.normalize_tensor(features) * scale).flatten(1))
    return torch.cat(parts, dim=1)


@full_fp32()
def pairwise(
    x: Tensor, y: Tensor, model: lpips.LPIPS, memory: int = _MEMORY, device: str | torch.device | None = None
) -> Tensor:
    """Computes LPIPS between every image of ``x`` and every image of ``y``.

    Values equal those of the lpips package to about 1e-6. The network processes each image once per block instead of
    twice per pair: a block keeps as many vectors of one side as fit into ``memory`` and compares them with all images
    of the other side. More images therefore take more time, not more memory.

    Args:
        x: images ``[N, 1 or 3, H, W]`` in [-1, 1].
        y: images ``[M, 1 or 3, H, W]`` in [-1, 1], of the same size.
        model: LPIPS network from `lpips_model`.
        memory: largest size of the kept vectors, in bytes.
        device: device of the computation; None for that of the model.

    Returns:
        Distances ``[N, M]``, float32, at least 0, on the CPU. That of two equal images is below 1e-5, not exactly 0.

    Raises:
        ValueError: the images differ in size or are not ``[N, 1 or 3, H, W]``.
    """
    x, y = as_rgb(x), as_rgb(y)
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"Images must have one size: {list(x.shape[2:])} and {list(y.shape[2:])}. Resize one side.")
    device = _place(model, device)
    distances = torch.empty(len(x), len(y))
    if not distances.numel():
        return distances
    with torch.inference_mode():
        width = embed(x[:1].to(device), model).shape[1]
        rows = max(1, memory // (4 * width))
        if len(x) + -(-len(x) // rows) * len(y) < len(y) + -(-len(y) // rows) * len(x):
            return pairwise(y, x, model, memory, device).T
        for first in range(0, len(y), rows):
            kept = _Kept(y[first : first + rows], width, model, device)
            for start in range(0, len(x), _BATCH):
                distances[start : start + _BATCH, first : first + rows] = kept.to(x[start : start + _BATCH])
            del kept  # frees the memory before the next block is computed
    return distances


@full_fp32()
def pairwise_within(
    x: Tensor, model: lpips.LPIPS, memory: int = _MEMORY, device: str | torch.device | None = None
) -> Tensor:
    """Computes LPIPS between all images of one set, with about half the network passes of `pairwise`.

    Args:
        x: images ``[N, 1 or 3, H, W]`` in [-1, 1].
        model: LPIPS network from `lpips_model`.
        memory: largest size of the kept vectors, in bytes.
        device: device of the computation; None for that of the model.

    Returns:
        Distances ``[N, N]``, float32, symmetric, 0 on the diagonal, on the CPU.
    """
    x = as_rgb(x)
    device = _place(model, device)
    distances = torch.empty(len(x), len(x))
    if not len(x):
        return distances
    with torch.inference_mode():
        width = embed(x[:1].to(device), model).shape[1]
        rows = max(1, memory // (4 * width))
        for first in range(0, len(x), rows):
            kept = _Kept(x[first : first + rows], width, model, device)
            last = first + len(kept.vectors)
            distances[first:last, first:last] = kept.within()
            for start in range(last, len(x), _BATCH):
                found = kept.to(x[start : start + _BATCH])
                distances[start : start + _BATCH, first:last] = found
                distances[first:last, start : start + _BATCH] = found.T
            del kept  # frees the memory before the next block is computed
    return distances.fill_diagonal_(0.0)


class _Kept:
    """The LPIPS vectors of one block of images, relative to their mean, which limits numerical cancellation."""

    def __init__(self, images: Tensor, width: int, model: lpips.LPIPS, device: torch.device) -> None:
        self.model, self.device = model, device
        self.vectors = torch.empty(len(images), width, device=device)
        for start in range(0, len(images), _BATCH):
            self.vectors[start : start + _BATCH] = embed(images[start : start + _BATCH].to(device), model)
        self.origin = self.vectors.mean(0)
        self.vectors -= self.origin
        # Squaring all vectors at once would double the memory.
        self.norm = torch.cat([part.square().sum(1) for part in self.vectors.split(_BATCH)])

    def to(self, images: Tensor) -> Tensor:
        """Returns the distances [B, kept] of further images to the kept ones."""
        vectors = embed(images.to(self.device), self.model) - self.origin
        squared = vectors.square().sum(1)[:, None] + self.norm - 2 * vectors @ self.vectors.T
        return squared.clamp_min(0).cpu()

    def within(self) -> Tensor:
        """Returns the distances [kept, kept] among the kept images."""
        squared = (self.norm[:, None] + self.norm - 2 * self.vectors @ self.vectors.T).clamp_min(0).cpu()
        return squared.tril() + squared.tril(-1).T  # a blocked matrix product need not be symmetric to the last bit


def nearest(samples: Tensor, reals: Tensor, model: lpips.LPIPS, device: str | torch.device | None = None) -> Tensor:
    """Computes LPIPS from each sample to the nearest real image; the mean is the paper's mmL.

    Args:
        samples: synthetic images ``[N, 1 or 3, H, W]`` in [-1, 1].
        reals: real images ``[M, 1 or 3, H, W]`` in [-1, 1], M >= 1, of the same size.
        model: LPIPS network from `lpips_model`.
        device: device of the computation; None for that of the model.

    Returns:
        Distances ``[N]``, float32, on the CPU.

    Raises:
        ValueError: there is no real image, or the images differ in size or have another shape.
    """
    if not len(reals):
        raise ValueError("There is no real image to be near to. Give at least one.")
    return pairwise(samples, reals, model, device=device).min(dim=1).values


@full_fp32()
def mean_pairwise(images: Tensor, model: lpips.LPIPS, device: str | torch.device | None = None) -> float:
    """Computes the mean LPIPS over all pairs of different images, a measure of the variety of a set.

    The mean of the squared distances is ``2 / (N - 1) sum_i |a_i - mean(a)|^2``, so one pass over the images suffices,
    in memory that does not depend on N.

    Args:
        images: images ``[N, 1 or 3, H, W]`` in [-1, 1], N >= 2.
        model: LPIPS network from `lpips_model`.
        device: device of the computation; None for that of the model.

    Returns:
        The mean distance.

    Raises:
        ValueError: there are fewer than two images.
    """
    if len(images) < 2:
        raise ValueError(f"Variety needs at least 2 images, not {len(images)}.")
    device = _place(model, device)
    squares = 0.0
    with torch.inference_mode():
        origin = embed(images[:1].to(device), model)
        total = torch.zeros_like(origin[0], dtype=torch.float64)
        for start in range(0, len(images), _BATCH):
            vectors = (embed(images[start : start + _BATCH].to(device), model) - origin).double()
            total += vectors.sum(0)
            squares += float(vectors.square().sum())
    spread = squares - float(total.square().sum()) / len(images)
    return max(0.0, 2 * spread / (len(images) - 1))


def _place(model: lpips.LPIPS, device: str | torch.device | None) -> torch.device:
    if device is None:
        return next(model.parameters()).device
    model.to(device)
    return torch.device(device)
