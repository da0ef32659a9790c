# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Membership inference attacks on the classifier of an arm.

Members are the training images of the generator, others are test images, on which neither generator nor classifier was
trained.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from bundle.auditing.measures import area_under_curve, true_positive_rate
from bundle.auditing.resampling import DRAWS, Estimate, estimate, patient_draws

__all__ = [
    "LEAST_FOR_ATTACK",
    "LEAST_FOR_RATE",
    "attack_by_outputs",
    "confidence",
    "joined_patients",
    "likelihood_ratios",
    "random_halves",
    "ratio_estimates",
]

#: Fewest members, and fewest others, for an attack.
LEAST_FOR_ATTACK = 20
#: Fewest others for a false positive rate of 1 %.
LEAST_FOR_RATE = 100
FOLDS = 5


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """Computes logit-scaled confidences [N], log(p_y / (1 - p_y)) (Carlini et al., arXiv 2112.03570, section IV-C).

    Args:
        logits: logits [N, K].
        labels: labels y [N].
    """
    logits = logits.double()
    mine = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(dim=1)
    return mine - others


def joined_patients(members: Tensor, others: Tensor) -> Tensor:
    """Concatenates patient numbers [N] and [M], both from 0, after shifting the latter so that none is in both."""
    return torch.cat([members, others + int(members.max()) + 1])


def random_halves(patients: Tensor, n_halves: int, seed: int) -> Tensor:
    """Draws random halves of the patients, each with its complement, so that every image is in half of them.

    Args:
        patients: patient number [N] of each image.
        n_halves: number of halves; even, at least 4, since the variance needs more than one half and its complement.
        seed: seed of the random halves.

    Returns:
        Whether each half contains each image, bool [n_halves, N].

    Raises:
        ValueError: ``n_halves`` is odd or below 4.
    """
    if n_halves < 4 or n_halves % 2:
        raise ValueError(f"Halves come with their complements: give an even number of 4 or more, not {n_halves}.")
    random = np.random.default_rng(seed)
    numbers = patients.unique()
    halves = []
    for _ in range(n_halves // 2):
        chosen = numbers[torch.from_numpy(random.permutation(len(numbers))[: len(numbers) // 2])]
        half = torch.isin(patients, chosen)
        halves += [half, ~half]
    return torch.stack(halves)


def likelihood_ratios(target: Tensor, shadows: Tensor, trained_on: Tensor) -> Tensor:
    """Computes scores of a transferred likelihood-ratio attack (LiRA; Carlini et al., arXiv 2112.03570, algorithm 1).

    The shadow models were trained on real images, the target on synthetic ones. Its confidences are therefore first
    scaled to the mean and standard deviation of those of the shadow models; this needs query access only. For each
    image, Gaussians are fitted to the confidences of the shadow models that were trained on it and of those that were
    not. Each has its own mean; since there are few models, all images share the variance (section VI-C there).

    Args:
        target: confidences [N] of the classifier under attack.
        shadows: confidences [S, N] of the shadow models.
        trained_on: whether each shadow model was trained on each image, bool [S, N].

    Returns:
        Log-likelihood ratios [N]; a higher value means a more likely member.
    """
    target, shadows = target.double(), shadows.double()
    target = (target - target.mean()) / target.std().clamp_min(1e-9) * shadows.std(dim=1).mean() + shadows.mean()
    density = {}
    for seen, chosen in ((True, trained_on), (False, ~trained_on)):
        count = chosen.sum(dim=0)
        mean = (shadows * chosen).sum(dim=0) / count
        spread = ((shadows - mean).square() * chosen).sum() / (count - 1).clamp_min(1).sum()
        variance = spread.clamp_min(1e-9)
        density[seen] = -(target - mean).square() / (2 * variance) - variance.log() / 2
    return density[True] - density[False]


def ratio_estimates(
    members: Tensor, others: Tensor, member_patients: Tensor, other_patients: Tensor
) -> dict[str, Estimate]:
    """Estimates ``lira_auc``, the AUC of an attack, and ``lira_tpr``, its true positive rate at 1 % false positives.

    Args:
        members: scores [N] of the members.
        others: scores [M] of the others.
        member_patients: patient number [N] of each member, for the bootstrap.
        other_patients: patient number [M] of each other image.
    """
    size = min(len(members), len(others))
    if size < LEAST_FOR_ATTACK:
        reason = f"an attack is tried on at least {LEAST_FOR_ATTACK} members and as many others; there are {size}"
        return {name: Estimate(n=size, reason=reason) for name in ("lira_auc", "lira_tpr")}
    draws = [patient_draws(patients, DRAWS, n) for n, patients in enumerate((member_patients, other_patients))]
    pairs = [(members[torch.from_numpy(a)], others[torch.from_numpy(b)]) for a, b in zip(*draws, strict=True)]
    n = len(members) + len(others)
    figures = {
        "lira_auc": estimate(area_under_curve(members, others), np.array([area_under_curve(*p) for p in pairs]), n)
    }
    if len(others) < LEAST_FOR_RATE:
        figures["lira_tpr"] = Estimate(n=n, reason=f"1 % of {len(others)} test images is less than one image")
    else:
        replicates = np.array([true_positive_rate(*pair) for pair in pairs])
        figures["lira_tpr"] = estimate(true_positive_rate(members, others), replicates, n)
    return figures


def attack_by_outputs(
    logits: tuple[Tensor, Tensor], labels: tuple[Tensor, Tensor], patients: tuple[Tensor, Tensor], seed: int
) -> dict[str, Estimate]:
    """Estimates the accuracy of an attack on the classifier's outputs, the paper's MIA; chance is 50 %.

    The attack model (gradient boosting on loss, confidence, entropy and label) is evaluated by five-fold
    cross-validation over patients: it is trained on four fifths of the patients, whose membership is known. This is
    more than an outsider can know. Members and others are subsampled to equal numbers in each class.

    Args:
        logits: logits [N, K] of the members and [M, K] of the others.
        labels: labels [N] and [M].
        patients: patient numbers [N] and [M], each from 0.
        seed: seed of the subsampling, the folds and the attack model.

    Returns:
        The estimate ``mia_accuracy``.
    """
    random = np.random.default_rng(seed)
    kept: tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]] = ([], [])
    for value in labels[1].unique():
        places = [(side == value).nonzero()[:, 0].numpy() for side in labels]
        size = min(map(len, places))
        for side, mine in zip(kept, places, strict=True):
            side.append(random.permutation(mine)[:size])
    chosen = [torch.from_numpy(np.concatenate(side)) for side in kept]
    size = len(chosen[0])
    if size < LEAST_FOR_ATTACK:
        reason = f"an attack is tried on at least {LEAST_FOR_ATTACK} members and as many others; there are {size}"
        return {"mia_accuracy": Estimate(n=size, reason=reason)}
    parts = [[values[side][index] for side, index in enumerate(chosen)] for values in (logits, labels, patients)]
    owners = joined_patients(*parts[2])
    features = _answers(torch.cat(parts[0]), torch.cat(parts[1]))
    truth = np.repeat([1, 0], size)
    right = np.zeros(2 * size)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for fit, judge in folds.split(features, truth, owners.numpy()):
        model = GradientBoostingClassifier(n_estimators=50, max_depth=2, random_state=seed)
        right[judge] = model.fit(features[fit], truth[fit]).predict(features[judge]) == truth[judge]
    sides = [right[:size], right[size:]]
    draws = [patient_draws(parts[2][side], DRAWS, side) for side in range(2)]
    replicates = [(sides[0][a].mean() + sides[1][b].mean()) / 2 for a, b in zip(*draws, strict=True)]
    return {"mia_accuracy": estimate(right.mean(), np.array(replicates), 2 * size)}


def _answers(logits: Tensor, labels: Tensor) -> NDArray[np.float64]:
    logs = logits.double().log_softmax(dim=1)
    loss = -logs.gather(1, labels[:, None])[:, 0]
    entropy = -(logs.exp() * logs).sum(dim=1)
    columns = [loss, confidence(logits, labels), logs.exp().amax(dim=1), entropy, labels.double()]
    return torch.stack(columns, dim=1).numpy()
