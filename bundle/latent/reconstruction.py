# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""How well latents reproduce real images, and how far they are from W."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bundle.latent.prior import LatentPrior
from bundle.metrics.lpips import embed, pairwise
from bundle.networks.sampling import fixed_latents
from bundle.networks.stylegan2 import Generator
from bundle.precision import full_fp32

if TYPE_CHECKING:
    import lpips

__all__ = [
    "descend",
    "image_errors",
    "layer_spread",
    "mapped_samples",
    "nearest_of_others",
    "reconstruction_scores",
    "reproduce",
    "synthesise",
]

SAMPLES = 10_000
# Images synthesised at once.
BATCH = 16


@torch.no_grad()
def mapped_samples(generator: Generator, seed: int, n: int = SAMPLES) -> Tensor:
    """Samples w [n, w_dim] of the mapping network, cycling through the classes, on the generator's device."""
    device = next(generator.parameters()).device
    z, label = fixed_latents(n, generator.z_dim, generator.num_classes, seed)
    return generator.mapping(z.to(device), label.to(device))


def reproduce(generator: Generator, w: Tensor) -> Tensor:
    """Synthesises images in [-1, 1] whose saturated pixels have gradients, too.

    Args:
        generator: generator G.
        w: latents [B, w_dim] or [B, layers, w_dim].

    Returns:
        Images [B, C, H, W]: the clamped ones, with the gradient of the others, since that of the clamp is 0.
    """
    raw = generator.synthesis.unclamped(w, "const")
    return raw + (raw.clamp(-1.0, 1.0) - raw).detach()


@torch.no_grad()
@full_fp32()
def synthesise(generator: Generator, w: Tensor) -> Tensor:
    """Synthesises images [N, C, H, W] of latents w [N, w_dim] or [N, layers, w_dim] in fp32, on the CPU."""
    device = next(generator.parameters()).device
    return torch.cat([generator.synthesis(part.to(device)).cpu() for part in w.split(BATCH)])


def image_errors(image: Tensor, original: Tensor, perceived: Tensor, model: lpips.LPIPS) -> tuple[Tensor, Tensor]:
    """Compares images with their originals.

    Args:
        image: images [B, C, H, W] in [-1, 1].
        original: the originals [B, C, H, W] in [-1, 1].
        perceived: `bundle.metrics.lpips.embed` of the originals, [B, D].
        model: network from `bundle.metrics.lpips.lpips_model`.

    Returns:
        LPIPS [B] and mean squared error of the pixels [B], both differentiable with respect to the images, in fp32.
    """
    distance = (embed(image, model).float() - perceived.float()).square().sum(dim=1)
    return distance, (image.float() - original.float()).square().mean(dim=(1, 2, 3))


def descend(loss: Callable[[Tensor], Tensor], start: Tensor, steps: int, learning_rate: float) -> Tensor:
    """Minimises a loss of latents by Adam with a learning rate that falls as a cosine.

    Adam treats every component apart, so that images do not influence each other.

    Args:
        loss: loss [N] of standardised latents [N, ...].
        start: standardised latents [N, ...], in standard deviations of w from its mean.
        steps: steps of Adam; 0 for the start.
        learning_rate: Adam's first learning rate, in standard deviations of w.

    Returns:
        Standardised latents [N, ...].
    """
    u = start.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([u], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    for _ in range(steps):
        optimizer.zero_grad()
        loss(u).sum().backward()
        optimizer.step()
        schedule.step()
    return u.detach()


def layer_spread(w: Tensor, deviation: Tensor) -> Tensor:
    """Returns how far w+ is from W: the root mean squared deviation of the layers' latents from their mean.

    Args:
        w: latents [N, layers, w_dim].
        deviation: standard deviation of each component in W, [w_dim].

    Returns:
        [N], in standard deviations of w; 0 in W, and about 1 where the layers' latents are independent samples.
    """
    return ((w - w.mean(dim=1, keepdim=True)) / deviation).square().mean(dim=(1, 2)).sqrt()


def nearest_of_others(
    images: Tensor, owners: Tensor, gallery: Tensor, gallery_owners: Tensor, model: lpips.LPIPS
) -> Tensor:
    """Computes LPIPS from each image to the nearest image of another patient in a gallery.

    Args:
        images: images [N, C, H, W] in [-1, 1].
        owners: patient of each image, [N], int64.
        gallery: images [M, C, H, W] in [-1, 1].
        gallery_owners: patient of each image of the gallery, [M], int64.
        model: network from `bundle.metrics.lpips.lpips_model`.

    Returns:
        Distances [N]; infinite where the gallery has no other patient.
    """
    distances = pairwise(images, gallery, model)
    return distances.masked_fill(owners[:, None] == gallery_owners[None], torch.inf).amin(dim=1)


@torch.no_grad()
@full_fp32()
def reconstruction_scores(
    generator: Generator,
    w: Tensor,
    originals: Tensor,
    labels: Tensor,
    nearest: Tensor,
    deviation: Tensor,
    prior: LatentPrior,
    model: lpips.LPIPS,
) -> dict[str, float]:
    """Summarises how well latents reproduce a set of images.

    Args:
        generator: generator G.
        w: latents of the images, [N, layers, w_dim].
        originals: images [N, C, H, W] in [-1, 1].
        labels: class of each image, [N].
        nearest: LPIPS of each image to the nearest training image of another patient, [N].
        deviation: standard deviation of each component in W, [w_dim].
        prior: distribution of W.
        model: network from `bundle.metrics.lpips.lpips_model`.

    Returns:
        Means over the images: ``lpips`` to the inversion and ``lpips_nearest`` to the nearest other image, beside the
        share ``nearer`` of images that are nearer to their inversion; ``pixels``, the root mean squared error; and the
        distances from W: ``spread`` (see `layer_spread`) and ``prior`` (1 for typical samples of the class, see
        `LatentPrior`).
    """
    device = next(generator.parameters()).device
    found = [
        image_errors(image, original, embed(original, model), model)
        for image, original in (
            (generator.synthesis(w[block].to(device)), originals[block].to(device))
            for block in torch.arange(len(w)).split(BATCH)
        )
    ]
    perceived, squared = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    finite = nearest.isfinite()
    return {
        "n": len(w),
        "lpips": float(perceived.mean()),
        "lpips_nearest": float(nearest[finite].mean()),
        "nearer": float((perceived < nearest).double().mean()),
        "pixels": float(squared.sqrt().mean()),
        "spread": float(layer_spread(w.to(device), deviation).mean()),
        "prior": float(prior(w.to(device), labels.to(device)).mean()),
    }
