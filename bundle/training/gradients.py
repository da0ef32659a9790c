# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Guard between a backward pass and the optimizer's step."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import get_total_norm

__all__ = ["DivergedError", "require_finite_gradients"]


class DivergedError(ArithmeticError):
    """A training whose gradients are no longer numbers; the message tells the cure."""


def require_finite_gradients(network: nn.Module, name: str, iteration: int) -> None:
    """Stops a training before NaN or infinity reaches the weights, and with them the next checkpoint.

    Args:
        network: after the backward pass, before the step.
        name: of the network, for the message.
        iteration: of the training, counted from 1, for the message.

    Raises:
        DivergedError: a gradient is infinite or NaN.
    """
    norm = get_total_norm([value.grad for value in network.parameters() if value.grad is not None])
    if not bool(norm.isfinite()):
        raise DivergedError(
            f"The gradient of {name} is {float(norm)} in iteration {iteration}: the training has diverged. Weights and "
            "checkpoint are from before, and the same command goes on from there. If it stops here again, the learning "
            "rate is too high: start anew with a lower one, in another output_dir."
        )
