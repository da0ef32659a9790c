# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Latent guides: student networks that predict a guide's output for G(w) from w without synthesising the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bundle.networks.classifiers import Classifier, Guide, NobodyHead
from bundle.networks.imagenet_classifier import ImageNetClassifier
from bundle.networks.realism import RealismJudge
from bundle.networks.weights import register_network

__all__ = ["LATENT_GUIDES", "LatentGuide", "LatentRealism", "new_latent_guide"]

#: Name of each latent guide's weight file, with the name of its teacher and the width of its layers. Predicting the
#: class or the realism from w is easier than predicting the identity, so that narrower layers suffice.
LATENT_GUIDES: dict[str, tuple[str, int]] = {
    "latent_identity": ("identity_guide", 1024),
    "latent_class": ("class_guide", 256),
    "latent_realism": ("realism_guide", 512),
}


class _SharedTrunk(nn.Module):
    """Perceptron on standardised latents whose outputs are >= 0, as the guide's features (averages of a ReLU) are."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, w_dim: int, width: int, depth: int, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(w_dim))
        self.register_buffer("deviation", torch.ones(w_dim))
        layers: list[nn.Module] = []
        for index in range(depth):
            layers += [nn.Linear(width if index else w_dim, width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, features))

    def forward(self, w: Tensor) -> Tensor:
        return F.softplus(self.layers((w - self.mean) / self.deviation), beta=2.0)


@register_network
class LatentGuide(Classifier):
    """Student of a guide: predicts the guide's features of G(w) from w and applies a copy of the guide's last layer.

    The last layer already separates the patients. The student only has to learn the features, which are smooth in w and
    fewer than the patients.

    Args:
        w_dim: length of w.
        features: length of the guide's feature vector.
        num_classes: number of identities or diagnoses.
        identity: whether the last layer is a `NobodyHead` rather than a linear layer.
        width: number of units of each hidden layer.
        depth: number of hidden layers.
    """

    trunk: _SharedTrunk

    def __init__(
        self, w_dim: int, features: int, num_classes: int, identity: bool = False, width: int = 1024, depth: int = 4
    ) -> None:
        super().__init__(_SharedTrunk(w_dim, width, depth, features), features, num_classes, identity)
        self.arguments = {
            "w_dim": w_dim,
            "features": features,
            "num_classes": num_classes,
            "identity": identity,
            "width": width,
            "depth": depth,
        }

    def standardise(self, w: Tensor) -> None:
        """Sets the mean and standard deviation of the inputs from representative latents [N, w_dim]."""
        self.trunk.mean.copy_(w.mean(dim=0))
        self.trunk.deviation.copy_(w.std(dim=0).clamp_min(1e-3))


@register_network
class LatentRealism(LatentGuide):
    """Student of a `RealismJudge`: predicts log(1 + d) of the distances d of G(w) from the real images of each class.

    Args:
        w_dim: length of w.
        num_classes: number of diagnoses.
        width: number of units of each hidden layer.
        depth: number of hidden layers.
    """

    def __init__(self, w_dim: int, num_classes: int, width: int = 512, depth: int = 4) -> None:
        super().__init__(w_dim, num_classes, num_classes, width=width, depth=depth)
        self.head = nn.Identity()  # type: ignore[assignment]
        self.arguments = {"w_dim": w_dim, "num_classes": num_classes, "width": width, "depth": depth}


def new_latent_guide(name: str, teacher: nn.Module, w_dim: int) -> LatentGuide:
    """Builds an untrained student, with a copy of its teacher's last layer if that has one.

    Args:
        name: a key of `LATENT_GUIDES`.
        teacher: the guide.
        w_dim: length of w.

    Raises:
        TypeError: the teacher is no guide.
    """
    width = LATENT_GUIDES[name][1]
    if isinstance(teacher, RealismJudge):
        return LatentRealism(w_dim, teacher.num_classes, width)
    if not isinstance(teacher, Guide | ImageNetClassifier):
        raise TypeError(f"Latent guides are distilled from a guide, not from {type(teacher).__name__}.")
    identity = isinstance(teacher.head, NobodyHead)
    features = int(teacher.head.weight.shape[1])
    student = LatentGuide(w_dim, features, teacher.num_classes, identity, width)
    student.head.load_state_dict(teacher.head.state_dict())
    return student
