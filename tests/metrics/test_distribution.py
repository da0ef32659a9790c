# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.metrics.pairwise import polynomial_kernel

from bundle.metrics.distribution import frechet_distance, kid


def draw(n: int, d: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


def test_kid_by_scikit_learns_kernel() -> None:
    x, y = draw(20, 6, 0).double(), draw(30, 6, 1, shift=0.5).double()

    def kernel(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
        return polynomial_kernel(a.numpy(), b.numpy(), degree=3, coef0=1)

    off_x = kernel(x, x)[~np.eye(20, dtype=bool)].mean()
    off_y = kernel(y, y)[~np.eye(30, dtype=bool)].mean()
    assert kid(x, y) == pytest.approx(off_x + off_y - 2 * kernel(x, y).mean(), rel=1e-9)


def test_kid_is_unbiased_for_equal_and_positive_for_shifted_distributions() -> None:
    equal = [kid(draw(40, 8, 2 * seed), draw(40, 8, 2 * seed + 1)) for seed in range(50)]
    standard_error = np.std(equal) / len(equal) ** 0.5
    assert abs(np.mean(equal)) < 3 * standard_error
    assert min(equal) < 0 < max(equal)
    assert kid(draw(40, 8, 0), draw(40, 8, 1, shift=1.0)) > 10 * np.std(equal)


def test_frechet_by_the_matrix_square_root() -> None:
    x, y = draw(200, 5, 0) @ draw(5, 5, 7), draw(150, 5, 1, shift=0.3)
    covariance_x, covariance_y = np.cov(x.double().numpy().T), np.cov(y.double().numpy().T)
    expected = float((x.double().mean(0) - y.double().mean(0)).square().sum()) + np.trace(
        covariance_x + covariance_y - 2 * np.real(sqrtm(covariance_x @ covariance_y))
    )
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


def test_frechet_known_by_construction() -> None:
    x = draw(50, 8, 0)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 2) == pytest.approx(8 * 2**2, rel=1e-5)
    centred = x.double() - x.double().mean(0)
    # Scaling by 3 multiplies the deviations: (3 - 1)^2 tr(S).
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * float(centred.square().sum()) / 49, rel=1e-9)


def test_frechet_with_fewer_images_than_features() -> None:
    x = draw(10, 64, 0)
    assert frechet_distance(x, x + 1) == pytest.approx(64, rel=1e-5)
    assert frechet_distance(x, draw(12, 64, 1)) > 0


@pytest.mark.parametrize("measure", [kid, frechet_distance])
def test_sets_that_cannot_be_compared_are_refused(measure: object) -> None:
    assert callable(measure)
    with pytest.raises(ValueError, match="at least 2"):
        measure(torch.zeros(1, 4), torch.zeros(5, 4))
    with pytest.raises(ValueError, match=r"\[5, 4\] and \[5, 3\]"):
        measure(torch.zeros(5, 4), torch.zeros(5, 3))


def test_kid_and_frechet_distance_by_torch_fidelity() -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    x, y = draw(60, 6, 0), draw(60, 6, 1, shift=0.5)
    whole = {"kid_subsets": 1, "kid_subset_size": 60, "verbose": False}
    expected = kid_features_to_metric(x, y, **whole)["kernel_inception_distance_mean"]
    assert kid(x, y) == pytest.approx(float(expected), rel=1e-4)
    statistics = [fid_features_to_statistics(side.double()) for side in (x, y)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-4)
