# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The measures of an audit, as functions of distances or scores; the catalogue names the space of each."""

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

#: Quantile of the distances to the nearest training image that is reported, since means hide a few very near images.
LOW = 0.05
#: Number k of neighbours for precision and recall (3 in Kynkäänniemi et al., NeurIPS 2019).
NEIGHBOURS = 3


def exceeds(similarity: Tensor, threshold: float) -> Tensor:
    """Returns which images count as copies; the mean is the copy rate (Dar et al., arXiv 2402.01054).

    Args:
        similarity: similarity [N] of each image to the most similar training image.
        threshold: copy threshold, from `bundle.metrics.copies.copy_threshold`.

    Returns:
        Whether each image is a copy, bool [N].
    """
    return similarity.double() > threshold


def nearest_two(distances: Tensor, patients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Finds the nearest training image and the nearest training image of another patient.

    The first distance is the distance to the closest record (DCR). Its ratio to the second is the nearest-neighbour
    distance ratio (NNDR), near 0 for an image that is much nearer to one patient than to all others. The second
    distance is to another patient because several images of one patient would hide this.

    Args:
        distances: distances [N, M] from N images to M training images.
        patients: patient number [M] of each training image.

    Returns:
        The first distance [N], the second distance [N], infinite if there is no other patient, and the index [N] of the
        nearest training image.
    """
    first, index = distances.min(dim=1)
    same = patients[index][:, None] == patients[None, :]
    second = distances.masked_fill(same, torch.inf).amin(dim=1)
    return first, second, index


def authentic(to_real: Tensor, index: Tensor, real_to_other: Tensor) -> Tensor:
    """Returns which images are authentic, i.e. not noisy copies (Alaa et al., arXiv 2102.08921, section 3).

    An image is not authentic if it is nearer to its nearest training image than this one is to its nearest neighbour.

    Args:
        to_real: distance [N] to the nearest training image.
        index: index [N] of the nearest training image.
        real_to_other: distance [M] from each training image to its nearest neighbour among the training images.

    Returns:
        Whether each image is authentic, bool [N].
    """
    return to_real >= real_to_other[index]


def other_images_auc(similarity: Tensor, index: Tensor, patients: Tensor) -> Tensor:
    """Computes how well an image identifies other images of its nearest patient, such as of the other eye or visit.

    Args:
        similarity: similarity [N, M] of N images to M training images.
        index: index [N] of the nearest training image, which defines the nearest patient and is itself excluded.
        patients: patient number [M] of each training image.

    Returns:
        Area under the ROC curve [N] of the similarity to the nearest patient's other training images against that to
        the images of all other patients; NaN if one of the two groups is empty.
    """
    same = patients[index][:, None] == patients[None, :]
    others = same.clone()
    others[torch.arange(len(index)), index] = False
    found = torch.full((len(index),), torch.nan)
    for row in (others.any(dim=1) & ~same.all(dim=1)).nonzero()[:, 0].tolist():
        found[row] = area_under_curve(similarity[row][others[row]], similarity[row][~same[row]])
    return found


def adversarial_accuracy(real_to_synthetic: Tensor, real_to_real: Tensor, synthetic_to_synthetic: Tensor) -> float:
    """Computes the nearest-neighbour adversarial accuracy (Yale et al., Neurocomputing 2020, equation 1).

    It is the accuracy with which nearest neighbours distinguish real from synthetic images: 0.5 for indistinguishable
    sets, near 0 for synthetic images that copy real ones, near 1 for separate sets. The privacy loss is the value for
    held-out images minus that for training images.

    Args:
        real_to_synthetic: distances [N, N].
        real_to_real: distances [N, N]; the diagonal is ignored.
        synthetic_to_synthetic: distances [N, N]; the diagonal is ignored.

    Returns:
        The mean of the accuracies on real and on synthetic images.
    """
    real = real_to_synthetic.amin(dim=1) > _nearest_other(real_to_real)
    synthetic = real_to_synthetic.amin(dim=0) > _nearest_other(synthetic_to_synthetic)
    return (float(real.double().mean()) + float(synthetic.double().mean())) / 2


def membership_scores(to_synthetic: Tensor, to_reference: Tensor) -> Tensor:
    """Computes scores of GAN-Leaks' calibrated full black-box attack (Chen et al., arXiv 1909.03935, eq. 4 and 8).

    A training image of the generator is nearer to synthetic images than its distance to reference images suggests. The
    paper's reference images are samples of another generator; here they are real images that are neither members nor
    non-members of the attack, as samples of a perfect generator would be.

    Args:
        to_synthetic: distance [N] from each real image to the nearest synthetic image.
        to_reference: distance [N] from each real image to the nearest reference image.

    Returns:
        Scores [N]; a higher score means a more likely member.
    """
    return to_reference - to_synthetic


def area_under_curve(members: Tensor, others: Tensor) -> float:
    """Computes the area under the ROC curve of members' scores [N], expected to be higher, against others' [M].

    It is the Mann-Whitney statistic, from mid-ranks, divided by the number of pairs. This takes a tenth of the time of
    tracing the curve, which matters for the thousand bootstrap draws of an interval.
    """
    n, m = len(members), len(others)
    ranks = rankdata(torch.cat([members, others]).double().numpy())
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def true_positive_rate(members: Tensor, others: Tensor, false_positive_rate: float = 0.01) -> float:
    """Computes the true positive rate of members at a false positive rate of at most ``false_positive_rate``."""
    allowed = int(false_positive_rate * len(others) + 1e-9)
    if allowed >= len(others):
        return 1.0
    # The threshold is the highest score of the others that must be rejected.
    return float((members > others.sort(descending=True).values[allowed]).double().mean())


def precision_recall(real: Tensor, synthetic: Tensor, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Computes improved precision and recall (Kynkäänniemi et al., NeurIPS 2019) with torch-fidelity.

    The manifold of a set is the union of spheres around its images, each with the distance to the image's k-th
    neighbour as radius. Precision is the share of synthetic images in the manifold of the real ones, recall the share
    of real images in that of the synthetic ones.

    Args:
        real: features [N, D] of the real images.
        synthetic: features [N, D] of the synthetic images.
        neighbours: k.

    Returns:
        Precision and recall.
    """
    from torch_fidelity.metric_prc import prc_features_to_metric  # takes seconds to import

    found = prc_features_to_metric(synthetic, real, prc_neighborhood=neighbours, verbose=False)
    return float(found["precision"]), float(found["recall"])


def variety(distances: Tensor) -> float:
    """Computes the mean distance between two different images of a set from its distances [N, N]."""
    n = len(distances)
    return float((distances.double().sum() - distances.diagonal().double().sum()) / (n * (n - 1)))


def low_percentile(values: Tensor) -> float:
    """Computes the 5th percentile of values [N], linearly interpolated."""
    return float(values.double().quantile(LOW))


def _nearest_other(distances: Tensor) -> Tensor:
    return distances.clone().fill_diagonal_(torch.inf).amin(dim=1)
