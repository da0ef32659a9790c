# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The gate: three networks that the walk never differentiates decide which images may be released."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bundle.networks.model_set import ModelInfos, ModelSet
from bundle.networks.realism import RealismJudge
from bundle.options import OptionError
from bundle.precision import full_fp32

__all__ = ["Gate", "GateDecision", "gate_apart", "gate_threshold", "open_gate"]


@dataclass(frozen=True)
class GateDecision:
    """Decisions of the gate on N images, each a bool tensor [N], and what tells the images apart.

    Attributes:
        passed: whether the image may be released.
        recognised: whether gate_identity's highest probability exceeds the threshold.
        mislabelled: whether gate_class predicts another class than the label.
        unrealistic: whether gate_realism's distance from real images of the class exceeds its threshold.
        features: standardised features of gate_realism, float16 [N, F]; similar images are near each other.
    """

    passed: Tensor
    recognised: Tensor
    mislabelled: Tensor
    unrealistic: Tensor
    features: Tensor


class Gate:
    """Evaluates images with gate_identity, gate_class and gate_realism.

    Args:
        gate_identity: identity classifier, trained separately from the identity guide.
        gate_class: diagnosis classifier, trained separately from the class guide.
        gate_realism: distance of images from the real images of a class.
        threshold: highest identity probability that passes: the 95th percentile over the validation images.
        farthest: largest distance from real images that passes: the 75th percentile over the validation images.

    Raises:
        OptionError: the threshold is not in (0, 1], or the distance is not above 0.
    """

    def __init__(
        self,
        gate_identity: nn.Module,
        gate_class: nn.Module,
        gate_realism: RealismJudge,
        threshold: float,
        farthest: float,
    ) -> None:
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0.0 < threshold <= 1.0:
            raise OptionError(
                [f"gate#threshold must be a probability in (0, 1], not {threshold!r}. Train the gate networks anew."]
            )
        if isinstance(farthest, bool) or not isinstance(farthest, int | float) or not 0.0 < farthest < math.inf:
            raise OptionError([f"gate#farthest must be a distance above 0, not {farthest!r}. Fit gate_realism anew."])
        self.gate_identity = gate_identity.to(memory_format=torch.channels_last)
        self.gate_class = gate_class.to(memory_format=torch.channels_last)
        self.gate_realism = gate_realism.to(memory_format=torch.channels_last)
        self.threshold, self.farthest = threshold, farthest

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
        features = self.gate_realism.features(images)
        unrealistic = ~(self.gate_realism.distance(features, label) <= self.farthest)
        return GateDecision(
            ~(recognised | mislabelled | unrealistic),
            recognised,
            mislabelled,
            unrealistic,
            self.gate_realism.standardised(features).half(),
        )


def gate_threshold(models: ModelInfos, name: str) -> float:
    """Returns the highest value that passes the gate, as calibrated for gate_identity or gate_realism."""
    return float(models.infos[name]["scores"]["threshold"])


def gate_apart(models: ModelInfos) -> list[float]:
    """Returns for each class the distance of `GateDecision.features` below which two images count as near-duplicates.

    It is the 5th percentile of the distances between real images of the class and their nearest neighbours.
    """
    return [float(value) for value in models.infos["gate_realism"]["scores"]["apart"]]


def open_gate(models: ModelSet, threshold: float | None = None, farthest: float | None = None) -> Gate:
    """Builds the gate from a set of networks.

    Args:
        models: networks that include ``gate_identity``, ``gate_class`` and ``gate_realism``.
        threshold: highest identity probability that passes, see `Gate`; None for the calibrated one.
        farthest: largest distance from real images that passes, see `Gate`; None for the calibrated one.
    """
    networks, judge = models.networks, models.networks["gate_realism"]
    assert isinstance(judge, RealismJudge)
    chosen = gate_threshold(models, "gate_identity") if threshold is None else threshold
    reach = gate_threshold(models, "gate_realism") if farthest is None else farthest
    return Gate(networks["gate_identity"], networks["gate_class"], judge, chosen, reach)
