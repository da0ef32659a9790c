# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Input data of plain generation: latent vectors with class labels."""

from __future__ import annotations

from typing import Any

import torch

from bundle.networks.sampling import fixed_latents

__all__ = ["labelled_latents"]


def labelled_latents(n_images: int, z_dim: int, num_classes: int, seed: int) -> list[dict[str, Any]]:
    """Makes the inputs of plain generation in the form that `Generator.forward` takes, cycling through the classes.

    Args:
        n_images: number of items.
        z_dim: length of z.
        num_classes: number of labels.
        seed: random seed of the z samples.

    Returns:
        Dictionaries with ``image`` (z concatenated with the one-hot label, ``[z_dim + num_classes]`` float32),
        ``label`` (class index) and ``name`` (``"000000"``, ``"000001"``, ...).
    """
    latents, labels = fixed_latents(n_images, z_dim, num_classes, seed)
    vectors = torch.cat([latents, torch.nn.functional.one_hot(labels, num_classes).float()], dim=1)
    return [
        {"image": vector, "label": int(label), "name": f"{index:06d}"}
        for index, (vector, label) in enumerate(zip(vectors, labels, strict=True))
    ]
