# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Check of the gradients between the backward pass and the optimizer's step."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import get_total_norm

__all__ = ["DivergedError", "require_finite_gradients"]


class DivergedError(ArithmeticError):
    """A training whose gradients are infinite or NaN; the message names the remedy."""


def require_finite_gradients(network: nn.Module, name: str, iteration: int) -> None:
    """Stops a training before NaN or infinity reaches the weights and the next checkpoint.

    Args:
        network: network after the backward pass.
        name: name of the network, for the message.
        iteration: number of the iteration, from 1, for the message.

    Raises:
        DivergedError: a gradient is infinite or NaN.
    """
    norm = get_total_norm([value.grad for value in network.parameters() if value.grad is not None])
    if not bool(norm.isfinite()):
        raise DivergedError(
            f"The gradient of {name} is {float(norm)} in iteration {iteration}: the training has diverged. Weights and "
            "checkpoint are from before, and the same command resumes there. If it stops here again, the learning "
            "rate is too high: start again with a lower one, in another output_dir."
        )
