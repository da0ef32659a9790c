# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Types and bounds of each command's options, one model per command; the defaults are in its configuration file."""

from __future__ import annotations

from typing import Any

import bundle.options
from bundle.commands.assessment import Audit, BlindReading, CheckData, Evaluate, Score
from bundle.commands.cohorts import Export, Generate, Inference, Invert, Release, Send
from bundle.commands.training import TrainAudit, TrainEncoder, TrainGan, TrainGuides, TrainLatentGuides
from bundle.options import Options

__all__ = ["COMMANDS", "check_options"]


#: Model of each command, by the name that configurations use.
COMMANDS: dict[str, type[Options]] = {
    "audit": Audit,
    "blind_reading": BlindReading,
    "check_data": CheckData,
    "evaluate": Evaluate,
    "export": Export,
    "generate": Generate,
    "inference": Inference,
    "invert": Invert,
    "release": Release,
    "score": Score,
    "send": Send,
    "train_audit": TrainAudit,
    "train_encoder": TrainEncoder,
    "train_gan": TrainGan,
    "train_guides": TrainGuides,
    "train_latent_guides": TrainLatentGuides,
}


def check_options(command: str) -> dict[str, Any]:
    """Rejects options that do not exist or have invalid values; the first expression of every run id.

    Args:
        command: one of `COMMANDS`.

    Returns:
        See `bundle.options.check_options`.

    Raises:
        OptionError: see `bundle.options.check_options`.
    """
    return bundle.options.check_options(COMMANDS[command])
