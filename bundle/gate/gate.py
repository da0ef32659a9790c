# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The gate: two networks that the walk never differentiates decide which images may be released."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bundle.networks.model_set import ModelInfos, ModelSet
from bundle.options import OptionError
from bundle.precision import full_fp32

__all__ = ["Gate", "GateDecision", "gate_threshold", "open_gate"]


@dataclass(frozen=True)
class GateDecision:
    """Decisions of the gate on N images, each a bool tensor [N].

    Attributes:
        passed: whether the image may be released.
        recognised: whether gate_identity's highest probability exceeds the threshold.
        mislabelled: whether gate_class predicts another class than the label.
    """

    passed: Tensor
    recognised: Tensor
    mislabelled: Tensor


class Gate:
    """Evaluates images with gate_identity and gate_class.

    Args:
        gate_identity: identity classifier, trained separately from the identity guide.
        gate_class: diagnosis classifier, trained separately from the class guide.
        threshold: highest identity probability that passes: the 95th percentile over the validation images.

    Raises:
        OptionError: the threshold is not in (0, 1].
    """

    def __init__(self, gate_identity: nn.Module, gate_class: nn.Module, threshold: float) -> None:
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0.0 < threshold <= 1.0:
            raise OptionError(
                [f"gate#threshold must be a probability in (0, 1], not {threshold!r}. Train the gate networks anew."]
            )
        self.gate_identity = gate_identity.to(memory_format=torch.channels_last)
        self.gate_class = gate_class.to(memory_format=torch.channels_last)
        self.threshold = threshold

    @torch.no_grad()
    @full_fp32()
    def __call__(self, images: Tensor, label: int) -> GateDecision:
        """Returns the decisions on images of one class, computed in fp32.

        Args:
            images: [N, C, H, W] in [-1, 1], after rounding to 8 bits, as they would be released.
            label: class that the images should show.
        """
        images = images.contiguous(memory_format=torch.channels_last)
        # "not <=" instead of ">": comparisons with NaN are false, and NaN must not pass the gate.
        recognised = ~(self.gate_identity(images).softmax(dim=1).amax(dim=1) <= self.threshold)
        mislabelled = self.gate_class(images).argmax(dim=1) != label
        return GateDecision(~recognised & ~mislabelled, recognised, mislabelled)


def gate_threshold(models: ModelInfos) -> float:
    """Returns the highest identity probability that passes the gate, as calibrated for gate_identity."""
    return float(models.infos["gate_identity"]["scores"]["threshold"])


def open_gate(models: ModelSet, threshold: float | None = None) -> Gate:
    """Builds the gate from a set of networks.

    Args:
        models: networks that include ``gate_identity`` and ``gate_class``.
        threshold: highest identity probability that passes, see `Gate`; None for the calibrated one.
    """
    networks = models.networks
    chosen = gate_threshold(models) if threshold is None else threshold
    return Gate(networks["gate_identity"], networks["gate_class"], chosen)
