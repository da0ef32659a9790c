# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""How similar a single image must be to a training image before chance can be ruled out, whatever the cohort's size.

Among many images some resemble a training patient by chance, and the more there are, the closer the closest one comes.
The bar is therefore set by the upper tail of held-out images, continued to the size of the cohort: the probability that
any of n images of held-out people exceeds it is the stated false-alarm rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

__all__ = ["TAIL", "Bar", "false_alarm_bar", "tail_correlation"]

#: Share of the held-out images whose excesses describe the tail.
TAIL = 0.1
# Correlations nearer to 1 than this count as this near; Fisher's z is infinite at 1.
LEAST_GAP = 1e-6


@dataclass(frozen=True)
class Bar:
    """A bar for the correlation of a single image with its most similar training image.

    Attributes:
        value: correlation that images of held-out people exceed with the stated probability.
        low: lowest bar if any one held-out patient is left out.
        high: highest bar if any one held-out patient is left out.
        n: held-out images in the tail.
    """

    value: float
    low: float
    high: float
    n: int


def false_alarm_bar(correlation: Tensor, patients: Tensor, n_images: int, false_alarms: float) -> Bar:
    """Sets the bar.

    Above its 90th percentile, Fisher's z of the correlations is taken for exponentially distributed: correlations are
    bounded, so their true tail is shorter, and the bar errs on the side of fewer false alarms. That the scale is itself
    estimated from k excesses is part of the bar (predictive distribution of an exponential sample):

        P(z > u + x) = p_u (1 + x / sum of excesses)^(-k)

    Args:
        correlation: of each held-out image with its most similar training image, [N].
        patients: whose image each one is, [N].
        n_images: images of the cohort.
        false_alarms: probability that any image of a cohort of held-out people exceeds the bar.
    """
    found = [
        tail_correlation(correlation[patients != patient], n_images, false_alarms)
        for patient in patients.unique().tolist()
    ]
    value = tail_correlation(correlation, n_images, false_alarms)
    return Bar(value, min(found, default=value), max(found, default=value), max(1, round(TAIL * len(correlation))))


def tail_correlation(correlation: Tensor, n_images: int, false_alarms: float) -> float:
    """Returns the bar of `false_alarm_bar` without its range."""
    z = correlation.double().clamp_max(1.0 - LEAST_GAP).atanh()
    start = z.quantile(1.0 - TAIL)
    excesses = (z - start)[z > start]
    k, probability = max(1, len(excesses)), false_alarms / n_images
    share = max(k / len(z), probability)
    return math.tanh(float(start + excesses.sum() * ((share / probability) ** (1.0 / k) - 1.0)))
