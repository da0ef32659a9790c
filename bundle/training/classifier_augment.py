# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Augmentations of the classifiers of real images, and synthetic "nobody" images mixed from several patients.

Everything works on whole batches and uses torch's global random generator, so that a seed per iteration fixes it.
Guides and gate share the geometric augmentations but differ in all others, so that they do not become invariant to the
same changes. The audit networks, which evaluate both, have strengths of their own.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

__all__ = [
    "AUDIT_CHANGES",
    "GATE_BLEND",
    "GATE_CHANGES",
    "GUIDE_CHANGES",
    "augment_for_audit",
    "augment_for_gate",
    "augment_for_guide",
    "blend_patients",
    "mix_patients",
]

# Images that are blurred alike: a blur takes as long for four images as for one.
BLURRED = 4

#: Augmentations of the guides, with their largest strength.
GUIDE_CHANGES: dict[str, float] = {
    "mirror": 1.0,
    "rotation": 15.0,  # degrees
    "shift": 0.1,  # share of the side
    "scale": 1.25,  # larger, or smaller by its inverse
    "aspect": 1.15,  # wider, or narrower by its inverse
    "coarseness": 3.0,  # downsampling factor for half of the images, one factor per batch
    "brightness": 0.4,  # added, in units of [-1, 1]
    "contrast": 1.6,  # factor, or its inverse
    "tint": 0.25,  # added to each channel of a colour image by itself, in units of [-1, 1]
    "balance": 1.5,  # factor of the contrast of each channel of a colour image by itself, or its inverse
    "noise": 0.1,  # standard deviation, in units of [-1, 1]
}

#: Augmentations of the gate's networks, with their largest strength.
GATE_CHANGES: dict[str, float] = {
    "mirror": 1.0,
    "rotation": 10.0,  # degrees
    "shear": 0.12,
    "shift": 0.08,
    "scale": 1.35,  # larger, or smaller by its inverse
    "gamma": 1.8,  # exponent, or its inverse
    "clipped": 0.6,  # cut off the darkest and brightest values, in units of [-1, 1]; half of the images each
    "sharpening": 0.5,  # share of the difference from a 3 x 3 mean
    "blur": 0.02,  # standard deviation of a Gaussian, as a share of the side, for two images in three
    "erased": 0.4,  # side of the erased square, as a share of the image's side
}

#: Largest share of another patient that is blended into every second image of the gate's identity network, which keeps
#: its identity: images of a generator may be copies that are blurred and partly of somebody else.
GATE_BLEND = 0.4

#: Augmentations of the audit networks, with their largest strength. JPEG compression is left out on purpose: the
#: audit's positive controls include it, as a change that the networks were not trained on.
AUDIT_CHANGES: dict[str, float] = {
    "mirror": 1.0,
    "rotation": 15.0,  # degrees
    "shift": 0.12,  # share of the side
    "scale": 1.5,  # larger, or smaller by its inverse
    "aspect": 1.1,  # wider, or narrower by its inverse
    "coarseness": 5.0,  # downsampling factor for half of the images, one factor per batch
    "gamma": 1.8,  # exponent, or its inverse
    "contrast": 1.6,  # factor, or its inverse
    "brightness": 0.3,  # added, in units of [-1, 1]
    "noise": 0.15,  # standard deviation, in units of [-1, 1]
}


def augment_for_guide(images: Tensor) -> Tensor:
    """Applies all `GUIDE_CHANGES` to images [B, C, H, W] in [-1, 1], each with a uniformly random strength."""
    change = GUIDE_CHANGES
    images = _coarsen(_transform(images, _similarities(images, change), change["shift"]), change["coarseness"])
    if images.shape[1] > 1:
        images = _recolour(images, change["tint"], change["balance"])
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    contrast = _per_image(_log_uniform(images, 1.0 / change["contrast"], change["contrast"]))
    brightness = _per_image(_uniform(images, -change["brightness"], change["brightness"]))
    noise = _per_image(_uniform(images, 0.0, change["noise"]))
    return ((images - mean) * contrast + mean + brightness + torch.randn_like(images) * noise).clamp(-1.0, 1.0)


def augment_for_gate(images: Tensor) -> Tensor:
    """Applies all `GATE_CHANGES` to images [B, C, H, W] in [-1, 1], each with a uniformly random strength."""
    n, change = len(images), GATE_CHANGES
    angle = _uniform(images, -1.0, 1.0) * math.radians(change["rotation"])
    shear = _uniform(images, -change["shear"], change["shear"])
    size = _log_uniform(images, 1.0 / change["scale"], change["scale"])
    rows = [angle.cos(), shear - angle.sin(), angle.sin(), angle.cos()]
    images = _transform(images, torch.stack(rows, dim=1).view(n, 2, 2) / size.view(n, 1, 1), change["shift"])
    images = _erase(images, change["erased"])
    gamma = _per_image(_log_uniform(images, 1.0 / change["gamma"], change["gamma"]))
    images = ((images + 1.0) / 2.0).clamp(1e-3, 1.0) ** gamma * 2.0 - 1.0
    dark, bright = (_uniform(images, -change["clipped"], change["clipped"]).clamp_min(0.0) for _ in range(2))
    images = images.clamp(_per_image(dark) - 1.0, _per_image(1.0 - bright))
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel_size=3, stride=1)
    share = _per_image(_uniform(images, 0.0, change["sharpening"]))
    return _blur((images + share * (images - blurred)).clamp(-1.0, 1.0), change["blur"])


def blend_patients(images: Tensor, most: float) -> Tensor:
    """Blends up to the share ``most`` of another image of the batch into every second image of [B, C, H, W]."""
    share = _per_image(_uniform(images, 0.0, most) * (torch.rand(len(images), device=images.device) < 0.5))
    return torch.lerp(images, images.roll(1, dims=0), share)


def augment_for_audit(images: Tensor) -> Tensor:
    """Applies all `AUDIT_CHANGES` to images [B, C, H, W] in [-1, 1], each with a uniformly random strength."""
    change = AUDIT_CHANGES
    images = _coarsen(_transform(images, _similarities(images, change), change["shift"]), change["coarseness"])
    gamma = _per_image(_log_uniform(images, 1.0 / change["gamma"], change["gamma"]))
    images = ((images + 1.0) / 2.0).clamp(1e-3, 1.0) ** gamma * 2.0 - 1.0
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    contrast = _per_image(_log_uniform(images, 1.0 / change["contrast"], change["contrast"]))
    brightness = _per_image(_uniform(images, -change["brightness"], change["brightness"]))
    noise = _per_image(_uniform(images, 0.0, change["noise"]))
    return ((images - mean) * contrast + mean + brightness + torch.randn_like(images) * noise).clamp(-1.0, 1.0)


def mix_patients(images: Tensor, identities: Tensor, num_identities: int) -> tuple[Tensor, Tensor]:
    r"""Makes "nobody" images, each mixed from 2 to 6 patients under soft masks of random coarseness.

    With s_k the share of the image that comes from identity k, the target probabilities are

        t_k = s_k^2 + (1 - sum_j s_j^2) / K:

    an image almost entirely of one patient keeps that identity, an even mixture of many is nobody. Mixtures keep the
    contrast of their parts, otherwise low contrast would identify nobody. Compare mixup (Zhang et al., ICLR 2018),
    whose targets are linear in s, and outlier exposure (Hendrycks et al., ICLR 2019), whose targets are uniform.

    Args:
        images: [B, C, H, W] in [-1, 1].
        identities: identity of each image, [B], in 0 ... K - 1.
        num_identities: K.

    Returns:
        Mixed images [B, C, H, W] in [-1, 1] and target probabilities [B, K].
    """
    n, _, height, width = images.shape
    parts = int(torch.randint(2, 7, ()))
    coarseness = int(torch.randint(1, 7, ()))
    order = torch.stack([torch.arange(n), *(torch.randperm(n) for _ in range(parts - 1))]).to(images.device)
    sharpness = 0.3 * 10.0 ** float(torch.rand(()))
    noise = torch.randn(n, parts, coarseness, coarseness, device=images.device) * sharpness
    masks = F.interpolate(noise, size=(height, width), mode="bilinear", align_corners=False).softmax(dim=1)
    mixed = (masks.unsqueeze(2) * images[order.T]).sum(dim=1)
    deviation = images.std(dim=(1, 2, 3), keepdim=True)
    wanted = deviation[order].mean(dim=0)
    mean = mixed.mean(dim=(1, 2, 3), keepdim=True)
    gain = (wanted / mixed.std(dim=(1, 2, 3), keepdim=True).clamp(min=1e-3)).clamp(1.0, 2.0)
    mixed = ((mixed - mean) * gain + mean).clamp(-1.0, 1.0)
    share = torch.zeros(n, num_identities, device=images.device)
    share.scatter_add_(1, identities[order].T, masks.mean(dim=(2, 3)))
    known = share.square()
    return mixed, known + (1.0 - known.sum(dim=1, keepdim=True)).clamp(min=0.0) / num_identities


def _uniform(images: Tensor, low: float, high: float) -> Tensor:
    return torch.empty(len(images), device=images.device).uniform_(low, high)


def _log_uniform(images: Tensor, low: float, high: float) -> Tensor:
    return _uniform(images, math.log(low), math.log(high)).exp()


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _similarities(images: Tensor, change: dict[str, float]) -> Tensor:
    """Samples matrices [B, 2, 2] from output to input coordinates that rotate, scale and change the aspect ratio."""
    angle = _uniform(images, -1.0, 1.0) * math.radians(change["rotation"])
    size = _log_uniform(images, 1.0 / change["scale"], change["scale"])
    wide = _log_uniform(images, 1.0 / change["aspect"], change["aspect"]).sqrt()
    rows = [angle.cos() / wide, -angle.sin() / wide, angle.sin() * wide, angle.cos() * wide]
    return torch.stack(rows, dim=1).view(-1, 2, 2) / size.view(-1, 1, 1)


def _transform(images: Tensor, linear: Tensor, shift: float) -> Tensor:
    """Mirrors half of the images, applies matrices [B, 2, 2] from output to input and shifts by a share of the side.

    Areas from outside the image are black in half of the images and replicate the border in the others, since image
    editors do either.
    """
    mirror = 1.0 - 2.0 * (torch.rand(len(images), device=images.device) < 0.5).float()
    linear = torch.stack([linear[:, :, 0] * mirror.unsqueeze(1), linear[:, :, 1]], dim=2)
    # Coordinates span [-1, 1], hence the doubled shift.
    moved = torch.empty(len(images), 2, 1, device=images.device).uniform_(-2.0 * shift, 2.0 * shift)
    grid = F.affine_grid(torch.cat([linear, moved], dim=2), list(images.shape), align_corners=False)
    drawn_out = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    black = F.grid_sample(images + 1.0, grid, mode="bilinear", padding_mode="zeros", align_corners=False) - 1.0
    return torch.where(_per_image(torch.rand(len(images), device=images.device) < 0.5), black, drawn_out)


def _coarsen(images: Tensor, most: float) -> Tensor:
    """Downsamples half of the images and upsamples them to their original size."""
    factor = math.exp(float(torch.rand(())) * math.log(most))
    size = [round(side / factor) for side in images.shape[-2:]]
    small = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
    coarse = F.interpolate(small, size=list(images.shape[-2:]), mode="bilinear", align_corners=False)
    return torch.where(_per_image(torch.rand(len(images), device=images.device) < 0.5), coarse, images)


def _blur(images: Tensor, most: float) -> Tensor:
    """Blurs two of three groups of images, each with a Gaussian of its own standard deviation."""
    parts = []
    for part in images.split(BLURRED):
        deviation = float(torch.rand(())) * most * images.shape[-1]
        if float(torch.rand(())) < 2 / 3 and deviation > 0.0:
            size = 2 * math.ceil(3.0 * deviation) + 1
            part = gaussian_blur(part, [size, size], [deviation, deviation])
        parts.append(part)
    return torch.cat(parts)


def _recolour(images: Tensor, tint: float, balance: float) -> Tensor:
    """Changes brightness and contrast of each channel separately, as another camera or exposure would."""
    size = (*images.shape[:2], 1, 1)
    offset = torch.empty(size, device=images.device).uniform_(-tint, tint)
    factor = torch.empty(size, device=images.device).uniform_(-math.log(balance), math.log(balance)).exp()
    mean = images.mean(dim=(2, 3), keepdim=True)
    return (images - mean) * factor + mean + offset


def _erase(images: Tensor, side: float) -> Tensor:
    """Fills a square at a random position with the image's mean."""
    height, width = images.shape[-2:]
    y = (torch.arange(height, device=images.device) + 0.5) / height
    x = (torch.arange(width, device=images.device) + 0.5) / width
    half = _uniform(images, 0.0, side / 2.0).unsqueeze(1)
    rows = (y - _uniform(images, 0.0, 1.0).unsqueeze(1)).abs() < half
    columns = (x - _uniform(images, 0.0, 1.0).unsqueeze(1)).abs() < half
    square = (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)
    return torch.where(square, images.mean(dim=(2, 3), keepdim=True), images)
