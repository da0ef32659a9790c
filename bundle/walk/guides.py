# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""What the walk asks about its points: phi_id(G(w)) and phi_class(G(w)), from the image itself or from w alone."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from bundle.networks.classifiers import Classifier
from bundle.networks.model_set import ModelSet
from bundle.networks.stylegan2 import Generator
from bundle.precision import bf16_autocast

__all__ = ["Guides", "ImageGuides", "LatentGuides", "walk_guides"]


class Guides(Protocol):
    """What is asked about points of W.

    Attributes:
        points_per_call: points to be asked about at once; bounds the memory.
    """

    points_per_call: int

    def __call__(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Maps w [M, w_dim] to phi_id's logits [M, K] and phi_class's [M, classes], fp32, both differentiable.

        phi_id's are those of the closed set, the softmax of the paper: see `bundle.networks.classifiers.Classifier`.
        """


class ImageGuides(nn.Module):
    """The guides themselves, asked about G(w): frozen.

    Args:
        generator: G.
        identity_guide: phi_id.
        class_guide: phi_class.
        clamped_gradient: let saturated pixels have no gradient, as the authors' clamp does.
        amp: bf16 on devices that compute in it.
    """

    points_per_call = 64

    def __init__(
        self,
        generator: Generator,
        identity_guide: nn.Module,
        class_guide: nn.Module,
        clamped_gradient: bool = False,
        amp: bool = True,
    ) -> None:
        super().__init__()
        self.synthesis = generator.synthesis
        self.identity_guide = _classifier(identity_guide)
        self.class_guide = class_guide
        self.clamped_gradient = clamped_gradient
        self.amp = amp
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """See `Guides.__call__`."""
        with bf16_autocast(w.device, self.amp):
            image = self.synthesis.unclamped(w)
            clamped = image.clamp(-1.0, 1.0)
            # Straight through: the guides see what is released, and saturated pixels still say where to go.
            image = clamped if self.clamped_gradient else image + (clamped - image).detach()
            image = image.contiguous(memory_format=torch.channels_last)
            return self.identity_guide.closed_set(image), self.class_guide(image).float()


def _classifier(network: nn.Module) -> Classifier:
    if not isinstance(network, Classifier):
        raise TypeError(f"The walk asks a Classifier whose patients it knows, not a {type(network).__name__}.")
    return network


class LatentGuides(nn.Module):
    """The guides' students, asked about w: a thousandth of the work, and not quite the same answers.

    Args:
        identity: student of phi_id, a `bundle.networks.latent_guides.LatentGuide`.
        classes: student of phi_class, another.
        amp: bf16 on devices that compute in it.
    """

    points_per_call = 4096

    def __init__(self, identity: nn.Module, classes: nn.Module, amp: bool = True) -> None:
        super().__init__()
        self.identity = _classifier(identity)
        self.classes = classes
        self.amp = amp
        self.eval().requires_grad_(False)

    def forward(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """See `Guides.__call__`."""
        with bf16_autocast(w.device, self.amp):
            return self.identity.closed_set(w), self.classes(w).float()


def walk_guides(models: ModelSet, guides: str, clamped_gradient: bool = False) -> Guides:
    """Puts together what the walk asks about its points.

    Args:
        models: networks, those of `generation_networks` at least.
        guides: ``latent`` or ``image``.
        clamped_gradient: see `ImageGuides`.
    """
    networks = models.networks
    if guides == "latent":
        return LatentGuides(networks["latent_identity"], networks["latent_class"])
    return ImageGuides(models.generator, networks["identity_guide"], networks["class_guide"], clamped_gradient)
