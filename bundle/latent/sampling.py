# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Latents z drawn so that each one depends on the seed and its own number alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["labelled_latents", "sample_z"]


def sample_z(indices: Iterable[int], z_dim: int, seed: int) -> Tensor:
    """Draws z ~ N(0, I), one for each number: asking for more, or in another order, changes none of them.

    Args:
        indices: numbers of the latents, each at least 0.
        z_dim: length of z.
        seed: at least 0.

    Returns:
        ``[N, z_dim]`` float32.
    """
    rows = [np.random.default_rng((seed, index)).standard_normal(z_dim, dtype=np.float32) for index in indices]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, z_dim)


def labelled_latents(n_images: int, z_dim: int, num_classes: int, seed: int) -> list[dict[str, Any]]:
    """Makes the data of plain generation: what `Generator.forward` takes, the classes in turn.

    Args:
        n_images: how many.
        z_dim: length of z.
        num_classes: number of labels.
        seed: of z.

    Returns:
        Dictionaries with ``image`` (z joined with the one-hot label, ``[z_dim + num_classes]`` float32), ``label`` (its
        class) and ``name`` (``"000000"``, ``"000001"``, ...).
    """
    latents = sample_z(range(n_images), z_dim, seed)
    labels = torch.arange(n_images) % num_classes
    vectors = torch.cat([latents, torch.nn.functional.one_hot(labels, num_classes).float()], dim=1)
    return [
        {"image": vector, "label": int(label), "name": f"{index:06d}"}
        for index, (vector, label) in enumerate(zip(vectors, labels, strict=True))
    ]
