# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Errors that every training may raise."""

from __future__ import annotations

__all__ = ["TrainingError"]


class TrainingError(ValueError):
    """A network that cannot be trained as requested; the message names the remedy."""
