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

import torch
from torch import Tensor

__all__ = ["TAIL", "Bar", "bars_without", "false_alarm_bar", "odd_patients", "tail_correlation"]

#: Share of the held-out images whose excesses describe the tail.
TAIL = 0.1
# Probability with which any of the held-out patients is called odd though none is, and largest share that can be.
ODD_RATE, ODD_SHARE = 0.005, 0.01
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
    found = bars_without(correlation, patients, n_images, false_alarms).tolist()
    value = tail_correlation(correlation, n_images, false_alarms)
    return Bar(value, min(found, default=value), max(found, default=value), max(1, round(TAIL * len(correlation))))


def bars_without(correlation: Tensor, patients: Tensor, n_images: int, false_alarms: float) -> Tensor:
    """Returns the bars [P] of `false_alarm_bar` if one held-out patient is left out, in the order of their numbers."""
    bars = [tail_correlation(correlation[patients != one], n_images, false_alarms) for one in patients.unique()]
    return torch.tensor(bars, dtype=torch.float64)


def odd_patients(correlation: Tensor, patients: Tensor) -> Tensor:
    """Finds held-out patients who are nearer to a training image than the others allow by chance.

    Such a patient is in the training images under another name, as a rule, and must not set a bar. Several of them
    would hide each other, so the smallest of the highest m is compared with the bar that all but these m set, from the
    largest m down to 1 (Rosner, Technometrics 1983).

    Args:
        correlation: of each held-out image with its most similar training image, [N].
        patients: whose image each one is, [N].

    Returns:
        The patients' numbers, at most 1 % of them (or one), in ascending order.
    """
    numbers = patients.unique()
    highest = torch.stack([correlation[patients == one].max() for one in numbers])
    order = highest.argsort(descending=True)
    most = max(1, int(ODD_SHARE * len(numbers)))
    for m in range(min(most, len(numbers) - 1), 0, -1):
        others = ~torch.isin(patients, numbers[order[:m]])
        bar = tail_correlation(correlation[others], int(others.sum()), ODD_RATE / most)
        if float(highest[order[m - 1]]) > bar:
            return numbers[order[:m]].sort().values
    return numbers[:0]


def tail_correlation(correlation: Tensor, n_images: int, false_alarms: float) -> float:
    """Returns the bar of `false_alarm_bar` without its range."""
    z = correlation.double().clamp_max(1.0 - LEAST_GAP).atanh()
    start = z.quantile(1.0 - TAIL)
    excesses = (z - start)[z > start]
    k, probability = max(1, len(excesses)), false_alarms / n_images
    share = max(k / len(z), probability)
    return math.tanh(float(start + excesses.sum() * ((share / probability) ** (1.0 / k) - 1.0)))
