# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The pools of one seed: their images, made part by part, and the distances of these to the real images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bundle.auditing.distances import Distances
from bundle.cohort.distinct import DistinctImages
from bundle.evaluation.arms import ARMS, POOLS, Pool, select
from bundle.evaluation.setting import DRAW_SEED, Setting
from bundle.steps import Step, Tensors

__all__ = ["SeedPools"]


class SeedPools:
    """Pools of one seed, made or read from disk when they are first needed.

    Args:
        setting: data, networks and options of the evaluation.
        seed: seed of the end points.
    """

    def __init__(self, setting: Setting, seed: int) -> None:
        self.setting, self.seed = setting, seed
        self.folder = setting.folder / f"{seed}"
        self._pools: dict[str, Pool] = {}
        self._distances: dict[str, Distances] = {}

    def steps(self) -> Iterator[Step]:
        """Yields the steps in an order in which the progress bar advances evenly."""
        source, quotas = self.setting.source, self.setting.quotas
        for name in self.setting.pools:
            parts = list(source.parts(name, quotas))
            cost = source.cost(name) * source.size(name, quotas) / len(parts)
            for part in parts:
                yield self._part(name, part, cost)
            yield Step(f"images {name} seed {self.seed}", 1.0, lambda name=name: self._visit(self.pool(name)))  # type: ignore[misc]
        for name in self.setting.pools:
            n = source.size(name, quotas)
            cost = 40.0 * n + 25.0 * len(self.setting.judged) * n / 500
            yield Step(
                f"distances {name} seed {self.seed}",
                cost,
                lambda name=name: self._visit(self.distances(name) if len(self.used(name)) else None),  # type: ignore[misc]
            )
            if POOLS[name].long:
                yield self._paths_step(name, 25.0 * n)

    def release(self) -> None:
        """Frees the memory of images and distances, which are read from disk if they are needed again."""
        self._pools.clear()
        self._distances.clear()

    def pool(self, name: str) -> Pool:
        """Returns a pool, with as many parts as are needed until each class has enough images that pass the gate."""
        if name not in self._pools:
            quotas = self.setting.quotas
            parts = list(self.setting.source.parts(name, quotas))
            found = [
                found
                for label, quota in quotas.items()
                for found in self._filled(name, [part for part in parts if part[0] == label], quota)
            ]
            self._pools[name] = Pool(**{key: torch.cat([part[key] for part in found]) for key in found[0]})
        return self._pools[name]

    def distances(self, name: str) -> Distances:
        """Returns the distances of those images of a pool that an arm contains, see `used`."""
        if name not in self._distances:
            pool, used = self.pool(name), self.used(name)
            groups, n_groups = self.groups(name)
            distances = Distances(
                pool.pixels[used], self.setting.reference, self.folder / name, DRAW_SEED, groups[used], n_groups
            )
            for step in distances.block_steps():  # distances within a set are computed per arm
                step.run()
            self._distances[name] = distances
        return self._distances[name]

    def used(self, name: str) -> Tensor:
        """Returns the indices of the images of a pool that at least one arm contains, in ascending order."""
        return torch.cat([self.chosen(arm) for arm, kind in self.setting.arms.items() if kind.pool == name]).unique()

    def groups(self, name: str) -> tuple[Tensor, int]:
        """Returns the number of the group of each image of a pool, and the number of groups.

        A group is a pair of end points of a class, which has the same number in all pools that are compared.
        """
        pool, kind = self.pool(name), POOLS[name]
        compared = [
            arm
            for arm, other in self.setting.arms.items()
            if other.pool and POOLS[other.pool].numbering == kind.numbering
        ]
        reached = torch.cat([self.arm_pool(arm).pairs[self.chosen(arm)] for arm in compared])
        n_pairs = 1 + max(reached.tolist(), default=0)
        # Pairs beyond the last that an arm uses need no number of their own, since they are in no bootstrap draw.
        return pool.labels * n_pairs + pool.pairs.clamp_max(n_pairs - 1), n_pairs * len(self.setting.quotas)

    def curves(self, name: str) -> Tensors:
        """Returns measures of the P long paths of a pool, with N points each.

        ``nearest`` [P, N] is LPIPS to the nearest training image, ``smoothness`` and ``variety`` [P] are the mean LPIPS
        between neighbouring and between any two images, ``groups`` and ``pairs`` [P] are those of the path.
        """
        return self._paths_step(name).result()

    def arm_pool(self, arm: str) -> Pool:
        """Returns the pool from which an arm is selected."""
        return self.pool(self.setting.arms[arm].pool)

    def chosen(self, arm: str) -> Tensor:
        """Returns the indices of an arm's images in its pool; arms of long paths contain every point."""
        kind, pool = self.setting.arms[arm], self.arm_pool(arm)
        if POOLS[kind.pool].long:
            return select(pool, kind, None, self.setting.source.published_pairs if kind.common else None)
        return select(pool, kind, self.setting.quotas)

    def images(self, arm: str) -> tuple[Tensor, Tensor]:
        """Returns pixels and labels of an arm in `ARMS`, including the real one."""
        if not ARMS[arm].pool:
            return self.setting.train.pixels, self.setting.train.labels
        pool, chosen = self.arm_pool(arm), self.chosen(arm)
        return pool.pixels[chosen], pool.labels[chosen]

    def cohort(self, arm: str) -> Distances:
        """Returns the images of an arm as a cohort, with the distances within it."""
        pool = self.setting.arms[arm].pool
        members = torch.searchsorted(self.used(pool), self.chosen(arm))
        part = self.distances(pool).of(members, self.folder / arm, DRAW_SEED)
        part.within_step().run()
        return part

    def shortage(self, arm: str) -> str:
        """Returns the reason why an arm has too few images to be compared; empty if it has enough."""
        if not self.setting.arms[arm].pool or arm in self.setting.long_arms:
            return ""
        pool = self.arm_pool(arm)
        labels = pool.labels[self.chosen(arm)]
        for label, quota in self.setting.quotas.items():
            found = int((labels == label).sum())
            if found < quota:
                made, name = int((pool.labels == label).sum()), self.setting.data.class_names[label]
                return f"only {found} of {made} images of {name} pass the gate and are distinct, not {quota}"
        return ""

    def _part(self, pool: str, part: tuple[int, range], cost: float = 0.0) -> Step:
        label, pairs = part
        return Step(
            f"images {pool} seed {self.seed}",
            cost,
            lambda: self.setting.source.make(pool, self.seed, label, pairs),
            self.folder / pool / f"{label}_{pairs.start:05d}.pt",
        )

    def _filled(self, pool: str, parts: list[tuple[int, range]], quota: int) -> list[Tensors]:
        """Returns the given parts of a class, and further ones until enough images pass the gate and are distinct."""
        waiting, found, kept = list(parts), [], 0
        distinct = DistinctImages(self.setting.source.apart[parts[0][0]])
        while waiting:
            part = waiting.pop(0)
            made = self._part(pool, part).result()
            sizes = made["pairs"].unique_consecutive(return_counts=True)[1].tolist()
            paths = zip(made.pop("features").split(sizes), made["passed"].split(sizes), strict=True)
            made["kept"] = torch.cat([distinct.add(features, passed) for features, passed in paths])
            found.append(made)
            kept += int(made["kept"].sum())
            if not waiting and kept < quota:
                further = self.setting.source.further(pool, part, quota, kept)
                waiting = [] if further is None else [further]
        return found

    def _paths_step(self, name: str, cost: float = 0.0) -> Step:
        path = self.folder / f"paths_{name}.pt"
        return Step(f"paths_{name} seed {self.seed}", cost, lambda: self._paths(name), path)

    def _paths(self, name: str) -> Tensors:
        """Computes the measures that `curves` returns."""
        pool, distances, points = self.pool(name), self.distances(name), self.setting.source.long_points
        paths = pool.pixels.split(points)
        within = torch.stack([self.setting.reference.measure_lpips(path) for path in paths])
        upper = torch.triu_indices(points, points, offset=1)
        return {
            "nearest": distances.lpips_to_train().view(-1, points),
            "smoothness": within.diagonal(offset=1, dim1=1, dim2=2).mean(dim=1),
            "variety": within[:, upper[0], upper[1]].mean(dim=1),
            "groups": distances.groups.view(-1, points)[:, 0],
            "pairs": pool.pairs.view(-1, points)[:, 0],
        }

    @staticmethod
    def _visit(made: Pool | Distances | None) -> Tensors:
        """Returns an empty result, since pools and distances stay in memory until `release`."""
        return {}
