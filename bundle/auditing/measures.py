# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The audit's measures, each a function of distances or of scores alone.

S are synthetic images, R_train the real images that the generator saw, R_hold real images that it never saw. Distances
may be any; the audit names the space of each in its report.
"""

from __future__ import annotations

import torch
from scipy.stats import rankdata
from torch import Tensor

__all__ = [
    "adversarial_accuracy",
    "area_under_curve",
    "authentic",
    "exceeds",
    "low_percentile",
    "membership_scores",
    "nearest_two",
    "other_images_auc",
    "precision_recall",
    "true_positive_rate",
    "variety",
]

#: Of the distances to the nearest training image that are reported: means hide the few images that are too near.
LOW = 0.05
#: Neighbours that span the support of a set (Kynkäänniemi et al., NeurIPS 2019, take 3).
NEIGHBOURS = 3


def exceeds(similarity: Tensor, threshold: float) -> Tensor:
    """Marks the images that count as copies; the mean is the copy rate (Dar et al., arXiv 2402.01054).

    Args:
        similarity: [N] of each image to the most similar training image.
        threshold: from `bundle.metrics.copies.copy_threshold`.

    Returns:
        [N], boolean.
    """
    return similarity.double() > threshold


def nearest_two(distances: Tensor, patients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Finds the nearest training image and the nearest one of another patient.

    The first is the distance to the closest record (DCR), the first by the second the nearest-neighbour distance ratio
    (NNDR): near 0 where an image is far nearer to one patient than to everybody else. A second image of the same
    patient would hide that, hence the other patient.

    Args:
        distances: [N, M] from N images to M training images.
        patients: [M], whose image each training image is.

    Returns:
        Both distances, [N] each, and the index [N] of the nearest; infinite where there is no other patient.
    """
    first, index = distances.min(dim=1)
    same = patients[index][:, None] == patients[None, :]
    second = distances.masked_fill(same, torch.inf).amin(dim=1)
    return first, second, index


def authentic(to_real: Tensor, index: Tensor, real_to_other: Tensor) -> Tensor:
    """Marks images that are no noisy copies (Alaa et al., arXiv 2102.08921, authenticity, section 3).

    An image is inauthentic where it is nearer to its nearest training image than that one is to any other.

    Args:
        to_real: distance [N] to the nearest training image.
        index: [N], which one that is.
        real_to_other: distance [M] from each training image to the nearest other one.

    Returns:
        [N], boolean.
    """
    return to_real >= real_to_other[index]


def other_images_auc(similarity: Tensor, index: Tensor, patients: Tensor) -> Tensor:
    """Asks whether an image leads to its patient by images that it is no copy of: the other eye, another visit.

    Args:
        similarity: [N, M] of N images with M training images.
        index: [N], the nearest training image of each, which says who its patient is and is itself left out.
        patients: [M], whose image each training image is.

    Returns:
        [N], for each image the area under the ROC curve of its similarity to the patient's other training images
        against those of all other patients; NaN where the patient, or everybody else, has none.
    """
    same = patients[index][:, None] == patients[None, :]
    others = same.clone()
    others[torch.arange(len(index)), index] = False
    found = torch.full((len(index),), torch.nan)
    for row in (others.any(dim=1) & ~same.all(dim=1)).nonzero()[:, 0].tolist():
        found[row] = area_under_curve(similarity[row][others[row]], similarity[row][~same[row]])
    return found


def adversarial_accuracy(real_to_synthetic: Tensor, real_to_real: Tensor, synthetic_to_synthetic: Tensor) -> float:
    """Nearest-neighbour adversarial accuracy (Yale et al., Neurocomputing 2020, equation 1).

    How often a nearest neighbour tells a real image from a synthetic one: 0.5 where the two sets cannot be told apart,
    towards 0 where synthetic images sit upon real ones, towards 1 where the sets lie apart. The privacy loss is its
    value for held-out images less its value for training images.

    Args:
        real_to_synthetic: distances [N, N].
        real_to_real: distances [N, N]; the diagonal is passed over.
        synthetic_to_synthetic: distances [N, N]; the diagonal is passed over.

    Returns:
        The mean of the two halves.
    """
    real = real_to_synthetic.amin(dim=1) > _nearest_other(real_to_real)
    synthetic = real_to_synthetic.amin(dim=0) > _nearest_other(synthetic_to_synthetic)
    return (float(real.double().mean()) + float(synthetic.double().mean())) / 2


def membership_scores(to_synthetic: Tensor, to_reference: Tensor) -> Tensor:
    """Scores of the calibrated full black-box attack of GAN-Leaks (Chen et al., arXiv 1909.03935, equations 4 and 8).

    An image that the generator saw is nearer to its samples than a reference lets expect. The reference there is
    another generator; here it is real images that neither side holds, which a perfect generator would draw.

    Args:
        to_synthetic: distance [N] from each real image to the nearest synthetic one.
        to_reference: distance [N] from each real image to the nearest image of the reference.

    Returns:
        [N]; the higher, the more likely a member.
    """
    return to_reference - to_synthetic


def area_under_curve(members: Tensor, others: Tensor) -> float:
    """Area under the ROC curve of scores that should be higher for members, [N] and [M].

    It is the Mann-Whitney statistic by the number of pairs, from ranks (SciPy), of which equal scores share the mean: a
    tenth of the time of tracing the curve, which counts where an interval asks for it a thousand times.
    """
    n, m = len(members), len(others)
    ranks = rankdata(torch.cat([members, others]).double().numpy())
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def true_positive_rate(members: Tensor, others: Tensor, false_positive_rate: float = 0.01) -> float:
    """Highest share of members found while at most that share of the others is taken for members."""
    allowed = int(false_positive_rate * len(others) + 1e-9)
    if allowed >= len(others):
        return 1.0
    # Whoever scores higher than the first of the others who must not be taken.
    return float((members > others.sort(descending=True).values[allowed]).double().mean())


def precision_recall(real: Tensor, synthetic: Tensor, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al., NeurIPS 2019), computed by torch-fidelity.

    Precision is the share of synthetic images within the reach of real ones, recall the share of real images within the
    reach of synthetic ones.

    Args:
        real: features [N, D].
        synthetic: features [N, D].
        neighbours: k: an image reaches as far as its k-th neighbour within its own set.

    Returns:
        Precision and recall.
    """
    from torch_fidelity.metric_prc import prc_features_to_metric  # takes seconds to import

    found = prc_features_to_metric(synthetic, real, prc_neighborhood=neighbours, verbose=False)
    return float(found["precision"]), float(found["recall"])


def variety(distances: Tensor) -> float:
    """Mean distance between two different images of a set, from its distances [N, N]."""
    n = len(distances)
    return float((distances.double().sum() - distances.diagonal().double().sum()) / (n * (n - 1)))


def low_percentile(values: Tensor) -> float:
    """The 5th percentile of values [N], linearly interpolated."""
    return float(values.double().quantile(LOW))


def _nearest_other(distances: Tensor) -> Tensor:
    return distances.clone().fill_diagonal_(torch.inf).amin(dim=1)
