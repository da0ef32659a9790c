# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""What may leave: images that two networks pass which the walk never differentiates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bundle.networks.model_set import ModelInfos, ModelSet
from bundle.precision import full_fp32

__all__ = ["Gate", "GateDecision", "gate_threshold", "open_gate"]


@dataclass(frozen=True)
class GateDecision:
    """The gate's word on images, each a bool tensor [N].

    Attributes:
        passed: the image may leave.
        recognised: gate_identity is surer of one patient than it is of 95 % of the validation images.
        mislabelled: gate_class sees another class than the label says.
    """

    passed: Tensor
    recognised: Tensor
    mislabelled: Tensor


class Gate:
    """Judges images by gate_identity and gate_class.

    Args:
        gate_identity: identity classifier, not the guide.
        gate_class: class classifier, not the guide.
        threshold: highest identity probability that passes: the 95th percentile over the validation images.

    Raises:
        ValueError: the threshold is no probability.
    """

    def __init__(self, gate_identity: nn.Module, gate_class: nn.Module, threshold: float) -> None:
        if not 0.0 < threshold <= 1.0:
            raise ValueError(f"threshold is a probability in (0, 1], not {threshold}. Train the gate networks anew.")
        self.gate_identity = gate_identity.to(memory_format=torch.channels_last)
        self.gate_class = gate_class.to(memory_format=torch.channels_last)
        self.threshold = threshold

    @torch.no_grad()
    @full_fp32()
    def __call__(self, images: Tensor, label: int) -> GateDecision:
        """Judges the images of one path, in fp32.

        Args:
            images: [N, C, H, W] in [-1, 1], as they would be released: after rounding to 8 bits.
            label: the class they are meant to show.
        """
        images = images.contiguous(memory_format=torch.channels_last)
        # "Not below" where "above" would do for numbers: NaN compares as false and must not open the gate.
        recognised = ~(self.gate_identity(images).softmax(dim=1).amax(dim=1) <= self.threshold)
        mislabelled = self.gate_class(images).argmax(dim=1) != label
        return GateDecision(~recognised & ~mislabelled, recognised, mislabelled)


def gate_threshold(models: ModelInfos) -> float:
    """Returns the highest identity probability that the gate lets pass, as it was calibrated for gate_identity."""
    return float(models.infos["gate_identity"]["scores"]["threshold"])


def open_gate(models: ModelSet, threshold: float | None = None) -> Gate:
    """Makes the gate of its two networks.

    Args:
        models: with ``gate_identity`` and ``gate_class``.
        threshold: see `Gate`; None for the one that was calibrated for them.
    """
    networks = models.networks
    chosen = gate_threshold(models) if threshold is None else threshold
    return Gate(networks["gate_identity"], networks["gate_class"], chosen)
