# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Selection of a cohort's images: evenly from all classes, and from all paths, whose points resemble each other."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["even_quotas", "even_shares", "spread_places"]


def even_quotas(n_images: int, names: Sequence[str]) -> dict[str, int]:
    """Divides a number of images evenly among classes, the first of which get one more where it does not divide."""
    share, rest = divmod(n_images, len(names))
    return {name: share + (position < rest) for position, name in enumerate(names)}


def even_shares(passed: Sequence[int], quota: int) -> list[int]:
    """Divides a quota among paths: each supplies the same number of images, as far as enough of its points passed.

    Args:
        passed: number of points of each path that passed the gate.
        quota: number of images wanted.

    Returns:
        Number of images of each path; their sum is the quota, or the sum of ``passed`` if that is less.
    """
    shares, left = [0] * len(passed), min(quota, sum(passed))
    while left:
        for path, most in enumerate(passed):
            if left and shares[path] < most:
                shares[path] += 1
                left -= 1
    return shares


def spread_places(number: int, wanted: int) -> list[int]:
    """Returns ``wanted`` places among ``number``, at equal distances."""
    return [(2 * place + 1) * number // (2 * wanted) for place in range(wanted)]
