# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Guides of the walk: identity, class and realism of G(w), computed from the image or predicted from w alone."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from bundle.networks.classifiers import Classifier
from bundle.networks.model_set import ModelInfos, ModelSet
from bundle.networks.stylegan2 import Generator
from bundle.networks.weights import WeightsError
from bundle.precision import bf16_autocast
from bundle.walk.objective import Objective

__all__ = ["Guides", "ImageGuides", "LatentGuides", "kappa_of", "walk_guides"]


class Guides(Protocol):
    """Interface of the guides, the classifiers whose gradient steers the walk.

    Attributes:
        points_per_call: largest number of points per call; bounds the memory.
    """

    points_per_call: int

    def __call__(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps w [M, w_dim] to differentiable values in fp32.

        Returns:
            phi_id's logits [M, K], of the closed set (`Classifier.closed_set`), whose softmax is that of the paper;
            phi_class's logits [M, classes]; and log(1 + d) [M, classes] of the distances d from the real images of each
            class, see `bundle.networks.realism.RealismJudge`.
        """


class ImageGuides(nn.Module):
    """Frozen guides evaluated on the synthesised image G(w).

    Args:
        generator: G.
        identity_guide: phi_id, classifier of patients.
        class_guide: phi_class, classifier of diagnoses.
        realism_guide: judge of realism; None to omit it, for objectives without L_real: its values are then 0.
        clamped_gradient: whether saturated pixels have zero gradient, as with the authors' clamp.
        amp: whether to compute in bf16 on devices that support it.
    """

    points_per_call = 64

    def __init__(
        self,
        generator: Generator,
        identity_guide: nn.Module,
        class_guide: nn.Module,
        realism_guide: nn.Module | None = None,
        clamped_gradient: bool = False,
        amp: bool = True,
    ) -> None:
        super().__init__()
        self.synthesis = generator.synthesis
        self.identity_guide = _classifier(identity_guide)
        self.class_guide = class_guide
        self.realism_guide = realism_guide
        self.clamped_gradient = clamped_gradient
        self.amp = amp
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Guides.__call__`."""
        with bf16_autocast(w.device, self.amp):
            image = self.synthesis.unclamped(w)
            clamped = image.clamp(-1.0, 1.0)
            # Straight-through estimator: the guides see the clamped image, yet saturated pixels pass gradients.
            image = clamped if self.clamped_gradient else image + (clamped - image).detach()
            image = image.contiguous(memory_format=torch.channels_last)
            identity, classes = self.identity_guide.closed_set(image), self.class_guide(image).float()
            realism = torch.zeros_like(classes) if self.realism_guide is None else self.realism_guide(image)
            return identity, classes, realism


def _classifier(network: nn.Module) -> Classifier:
    if not isinstance(network, Classifier):
        raise TypeError(f"The walk asks a Classifier whose patients it knows, not a {type(network).__name__}.")
    return network


class LatentGuides(nn.Module):
    """Latent guides: students of the guides that predict from w, approximately, at about a thousandth of the cost.

    Args:
        identity: student of phi_id, a `bundle.networks.latent_guides.LatentGuide`.
        classes: student of phi_class, likewise.
        realism: student of the guide of realism, a `bundle.networks.latent_guides.LatentRealism`.
        amp: whether to compute in bf16 on devices that support it.
    """

    points_per_call = 4096

    def __init__(self, identity: nn.Module, classes: nn.Module, realism: nn.Module, amp: bool = True) -> None:
        super().__init__()
        self.identity = _classifier(identity)
        self.classes = classes
        self.realism = realism
        self.amp = amp
        self.eval().requires_grad_(False)

    def forward(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Guides.__call__`."""
        with bf16_autocast(w.device, self.amp):
            return self.identity.closed_set(w), self.classes(w).float(), self.realism(w).float()


def kappa_of(models: ModelInfos) -> float:
    """Returns kappa of `BalancedObjective`, as it was measured on images of strangers when phi_id was trained.

    Raises:
        WeightsError: phi_id was trained by an earlier version, which did not measure it.
    """
    scores = models.infos["identity_guide"].get("scores", {})
    if "stranger_divergence" not in scores:
        raise WeightsError(
            "identity_guide.json has no stranger_divergence. Add it with the run `strangers` of "
            "configs/train_guides.json, or give --kappa 0 to walk as before."
        )
    return float(scores["stranger_divergence"])


def walk_guides(models: ModelSet, guides: str, objective: Objective) -> Guides:
    """Builds the guides of a walk.

    Args:
        models: networks, at least those of `generation_networks`.
        guides: ``latent`` or ``image``.
        objective: loss that the walk minimises; with ``image``, what it does not use is not computed.
    """
    networks = models.networks
    if guides == "latent":
        return LatentGuides(networks["latent_identity"], networks["latent_class"], networks["latent_realism"])
    realism = networks["realism_guide"] if objective.realistic else None
    return ImageGuides(
        models.generator, networks["identity_guide"], networks["class_guide"], realism, objective.clamped_gradient
    )
