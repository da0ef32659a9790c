# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Shares of images above a threshold that is itself estimated, from validation images."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bundle.auditing.measures import exceeds
from bundle.auditing.reference import EMBEDDING, VERIFIER, Reference
from bundle.auditing.resampling import DRAWS, Estimate, estimate, exact_share, patient_draws
from bundle.metrics.copies import copy_threshold

__all__ = ["Threshold", "calibrated_thresholds", "share_above"]

# Seed of the draws of validation patients. All sets of images share it, so that two of them can be compared; it is none
# of the seeds by which their own patients are drawn.
SEED = 7919


class Threshold:
    """The threshold of `bundle.metrics.copies.copy_threshold`, with what it would be on other validation patients.

    Args:
        calibration: similarity [V] of each validation image to the most similar training image.
        patients: patient number [V] of each validation image.
        seed: seed of the bootstrap draws of patients.

    Attributes:
        value: threshold.
        replicates: threshold [draws] of each bootstrap draw.
    """

    def __init__(self, calibration: Tensor, patients: Tensor, seed: int) -> None:
        self.value = copy_threshold(calibration)
        draws = patient_draws(patients, DRAWS, seed)
        self.replicates = np.array([copy_threshold(calibration[torch.from_numpy(draw)]) for draw in draws])


def calibrated_thresholds(reference: Reference) -> dict[str, Threshold]:
    """Returns the thresholds of copies (embedding) and of re-identification (verifier), by the network's name."""
    patients = reference.real["val"].patients
    return {
        name: Threshold(reference.points[name]["val_correlation"], patients, SEED) for name in (EMBEDDING, VERIFIER)
    }


def share_above(values: Tensor, draws: list[NDArray[np.int64]], threshold: Threshold) -> Estimate:
    """Estimates the share of values [N] above a threshold; images and validation patients are drawn anew together.

    The interval is never shorter than the exact binomial one if no or every value is above the threshold.

    Args:
        values: similarity [N] of each image to the most similar training image.
        draws: bootstrap draws of patients or paths, as indices into the images.
        threshold: threshold, with as many replicates as there are draws.
    """
    above = exceeds(values, threshold.value)
    similarity, n = values.double().numpy(), len(values)
    replicates = np.array(
        [(similarity[draw] > bar).mean() for draw, bar in zip(draws, threshold.replicates, strict=True)]
    )
    found = estimate(float(above.double().mean()), replicates, n)
    if 0 < found.value < 1:
        return found
    exact = exact_share(int(above.sum()), n, replicates)
    return Estimate(found.value, min(found.low, exact.low), max(found.high, exact.high), n, replicates=replicates)
