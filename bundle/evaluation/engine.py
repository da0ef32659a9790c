# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The evaluation as an Ignite engine: arms and seeds one after the other, each result kept, tables at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from ignite.engine import Engine
from numpy.typing import NDArray
from torch import Tensor, nn

from bundle.auditing.assessment import HALVES, measure
from bundle.auditing.catalogue import MEASURES as AUDIT_MEASURES
from bundle.auditing.distances import Distances, Reference, Step, Tensors, reference_key
from bundle.auditing.engine import AuditProgress
from bundle.auditing.images import RealData
from bundle.auditing.resampling import DRAWS, Estimate, bootstrap, estimate, half_samples, mean, patient_draws, share
from bundle.data import DataError, ImageData
from bundle.evaluation.arms import ARMS, LONG_ARMS, POOLS, Pool, select
from bundle.evaluation.membership import (
    attack_by_outputs,
    confidence,
    joined_patients,
    likelihood_ratios,
    random_halves,
    ratio_figures,
)
from bundle.evaluation.pools import PoolMaker
from bundle.evaluation.report import write_evaluation
from bundle.evaluation.utility import (
    ClassifierSettings,
    accuracy_figures,
    classify,
    label_figures,
    shortcut_figures,
    train_classifier,
)
from bundle.files import content_digest, load_tensors
from bundle.metrics.distribution import frechet_distance, kid
from bundle.training.seeds import stream_seed

__all__ = ["EvaluationEngine"]

# Of what the files on disk are made; counts up whenever that changes.
FORMAT = 5
# Seed of all draws of intervals: the same in all arms and seeds, which are so compared draw by draw.
DRAW_SEED = 0
# CPU-milliseconds: an image of a classifier's training at 64 px, the figures of an arm.
TRAIN_MS, FIGURES_MS = 5.0, 15_000.0
# The arm whose classifier says what the images of the others show: no walk and no gate has asked it.
JUDGE = "real"
# Streams of random numbers of a seed.
TARGET, SHADOW, HALF, ATTACK = range(4)


class EvaluationEngine(Engine):
    """Compares arms over seeds and writes the report.

    A killed run goes on where it was: each part of a pool, each classifier and the figures of each arm and seed lie in
    ``private/evaluation``, in a folder named after the content of all that they depend on. Several processes may share
    the work by seeds; the last one, told all seeds, finds theirs done.

    Args:
        source: makes the images.
        data: real images, at the resolution of the generator.
        networks: ``audit_embedding`` and ``audit_verifier``.
        infos: content of each one's JSON.
        output_dir: gets ``report.html``, ``results.json``, the figures and ``private/``.
        quotas: images of each class in an arm.
        seeds: of end points, classifiers and attacks.
        n_shadows: shadow models of a seed; even, at least 4.
        settings: of the classifiers' training.
        squeezenet_file: weights of SqueezeNet 1.1; None lets torchvision find them.
        device: where to compute.
        handlers: further Ignite handlers.

    Attributes:
        results: content of results.json, once the engine has run.

    Raises:
        DataError: a split is empty.
    """

    def __init__(
        self,
        source: PoolMaker,
        data: ImageData,
        networks: Mapping[str, nn.Module],
        infos: Mapping[str, dict[str, Any]],
        output_dir: str | os.PathLike[str],
        quotas: dict[int, int],
        seeds: Sequence[int] = (0, 1, 2, 3, 4),
        n_shadows: int = 16,
        settings: ClassifierSettings | None = None,
        squeezenet_file: str | os.PathLike[str] | None = None,
        device: str | torch.device = "cpu",
        handlers: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(lambda engine, step: self._step(step))
        self.source, self.data, self.quotas = source, data, quotas
        self.seeds, self.n_shadows = tuple(seeds), n_shadows
        self.settings = settings or ClassifierSettings()
        self.device = torch.device(device)
        self.output_dir = Path(output_dir)
        if not data.records("test"):
            raise DataError(
                "the dataset has no test images, and an evaluation is judged on nothing else. Give dataset_dir a test "
                "split that no network has seen, by a column split in labels.csv or by folders of these names."
            )
        self.real = RealData(data)
        # The generator saw extra images too, in other shares of the classes than arms and test images have: distances
        # are taken to them as well; classifiers, attacks and distributions leave them out.
        self.train, self.test = self.real.sides["train"].part(self.real.own), self.real.sides["test"]
        # Training and test images together: what the attacks are tried on.
        self.judged = torch.cat([self.train.pixels, self.test.pixels])
        self.judged_labels = torch.cat([self.train.labels, self.test.labels])
        self.judged_patients = joined_patients(self.train.patients, self.test.patients)
        self.pools = [name for name in POOLS if source.published_pairs or POOLS[name].walk != "published"]
        self.long_arms = {name: arm for name, arm in LONG_ARMS.items() if source.published_pairs or not arm.common}
        self.arms = {**ARMS, **self.long_arms}
        real_key = {"format": FORMAT, **reference_key(self.real, infos, squeezenet_file)}
        key = {
            **real_key,
            "source": source.settings,
            "pairs": [source.long_pairs, source.published_pairs],
            "quotas": quotas,
            "classifier": asdict(self.settings),
            "n_shadows": n_shadows,
        }
        home = self.output_dir / "private" / "evaluation"
        self.folder = home / content_digest(key)
        real_home = home / f"real-{content_digest(real_key)}"
        self.reference = Reference(self.real.sides, networks, real_home, DRAW_SEED, squeezenet_file, device)
        self.test_draws = patient_draws(self.test.patients, DRAWS, DRAW_SEED)
        self.infos = infos
        self.results: dict[str, Any] = {}
        self._pools: dict[tuple[int, str], tuple[Pool, Distances]] = {}
        self.steps = list(self._steps())
        for handler in [AuditProgress("evaluating"), *(handlers or [])]:
            handler.attach(self)

    def run(self) -> Any:  # type: ignore[override]
        """Takes all steps."""
        return super().run(self.steps, max_epochs=1, epoch_length=len(self.steps))

    def figures(self, arm: str, seed: int) -> dict[str, Estimate]:
        """Returns the figures of an arm and seed that have been taken."""
        return _read_figures(self.folder / f"{seed}" / f"figures_{arm}.pt")

    def strangers(self) -> dict[str, dict[str, Estimate]]:
        """Returns the audit's figures of ``test`` and ``training`` images, by column."""
        columns: dict[str, dict[str, Estimate]] = {"test": {}, "training": {}}
        for name, value in _read_figures(self.folder / f"{self.seeds[0]}" / "strangers.pt").items():
            column, _, key = name.partition(" ")
            columns[column][key] = value
        return columns

    def curves(self, pool: str, seed: int) -> Tensors:
        """Returns of each long path ``nearest`` [P, N], LPIPS to the nearest training image at each point.

        Besides ``smoothness`` and ``variety`` [P], the mean LPIPS between neighbours and between any two of its images,
        ``groups`` [P] and ``pairs`` [P], see `Pool`.
        """
        return self._read(seed, f"paths_{pool}")

    def _step(self, step: Step) -> dict[str, Any]:
        step.run()
        name, _, seed = step.name.partition(" seed ")
        arm = name.removeprefix("figures_")
        if arm not in self.arms:
            return {"arm": "", "seed": "", "metrics": {}}
        found = self.figures(arm, int(seed))
        metrics = {key: value.value for key, value in found.items() if not value.reason}
        self.state.metrics.update({f"{arm}/{key}": value for key, value in metrics.items()})
        return {"arm": arm, "seed": seed, "metrics": metrics}

    def _steps(self) -> Iterator[Step]:
        yield from self.reference.steps()
        n_images, n_real = sum(self.quotas.values()), len(self.judged)
        for seed in self.seeds:
            for pool in self.pools:
                yield from self._pool_steps(seed, pool)
            for pool in self.pools:
                n = self.source.size(pool, self.quotas)
                yield self._bare(seed, f"distances {pool}", 40.0 * n + 25.0 * n_real * n / 500, self._measure, pool)
                if POOLS[pool].long:
                    yield self._kept(seed, f"paths_{pool}", 25.0 * n, self._paths, pool)
            cost = TRAIN_MS * self.settings.epochs
            for arm in ARMS:
                yield self._kept(seed, f"classifier_{arm}", cost * n_images, self._classifier, arm)
            for number in range(self.n_shadows):
                yield self._kept(seed, f"shadow_{number:02d}", cost * n_real / 2, self._shadow, number)
            for arm in self.arms:
                yield self._kept(seed, f"figures_{arm}", FIGURES_MS, self._figures, arm)
            if seed == self.seeds[0]:
                yield self._kept(seed, "strangers", FIGURES_MS, self._strangers)
            yield self._bare(seed, "release", 1.0, self._release)
        yield Step("tables", FIGURES_MS, self._conclude)

    def _kept(self, seed: int, name: str, cost: float, compute: Callable[..., Tensors], *arguments: Any) -> Step:
        return Step(
            f"{name} seed {seed}", cost, lambda: compute(seed, *arguments), self.folder / f"{seed}" / f"{name}.pt"
        )

    def _bare(self, seed: int, name: str, cost: float, compute: Callable[..., Tensors], *arguments: Any) -> Step:
        return Step(f"{name} seed {seed}", cost, lambda: compute(seed, *arguments))

    def _read(self, seed: int, name: str) -> Tensors:
        result: Tensors = load_tensors(self.folder / f"{seed}" / f"{name}.pt")
        return result

    # Pools

    def _pool_steps(self, seed: int, pool: str) -> Iterator[Step]:
        parts = list(self.source.parts(pool, self.quotas))
        cost = self.source.cost(pool) * self.source.size(pool, self.quotas) / len(parts)
        for part in parts:
            yield self._part(seed, pool, part, cost)
        yield self._bare(seed, f"images {pool}", 1.0, self._fill, pool, parts)

    def _part(self, seed: int, pool: str, part: tuple[int, range], cost: float = 0.0) -> Step:
        label, pairs = part
        path = self.folder / f"{seed}" / pool / f"{label}_{pairs.start:05d}.pt"
        return Step(
            f"images {pool} seed {seed}", cost, lambda: asdict(self.source.make(pool, seed, label, pairs)), path
        )

    def _fill(self, seed: int, pool: str, parts: list[tuple[int, range]]) -> Tensors:
        """Adds parts until each class has enough images that pass the gate, and puts the pool together."""
        by_class: dict[int, list[Tensors]] = {label: [] for label in self.quotas}
        for label, quota in self.quotas.items():
            waiting = [part for part in parts if part[0] == label]
            while waiting:
                part = waiting.pop(0)
                step = self._part(seed, pool, part)
                step.run()
                by_class[label].append(load_tensors(cast(Path, step.path)))
                passed = sum(int(found["passed"].sum()) for found in by_class[label])
                if not waiting and passed < quota:
                    further = self.source.further(pool, part, quota, passed)
                    waiting = [] if further is None else [further]
        found = [part for parts_ in by_class.values() for part in parts_]
        joined = Pool(**{key: torch.cat([part[key] for part in found]) for key in found[0]})
        distances = Distances(joined.pixels, self.reference, self.folder / f"{seed}" / pool, DRAW_SEED)
        self._pools[seed, pool] = (joined, distances)
        return {}

    def _measure(self, seed: int, pool: str) -> Tensors:
        """Takes the distances of a pool, and numbers its pairs as those of the pools it is compared with."""
        joined, distances = self._pools[seed, pool]
        for step in distances.block_steps():  # distances within are a matter of arms
            step.run()
        kind = POOLS[pool]
        alike = [
            arm
            for arm, other in self.arms.items()
            if other.pool and (POOLS[other.pool].long, POOLS[other.pool].single) == (kind.long, kind.single)
        ]
        reached = torch.cat([self._pool(seed, arm).pairs[self._chosen(seed, arm)] for arm in alike])
        n_pairs = 1 + max(reached.tolist(), default=0)
        # Pairs that no arm reaches have no number of their own: nothing of them is ever drawn.
        distances.groups = joined.labels * n_pairs + joined.pairs.clamp_max(n_pairs - 1)
        distances.n_groups = n_pairs * len(self.quotas)
        return {}

    def _release(self, seed: int) -> Tensors:
        """Forgets the images of a seed."""
        for key in [key for key in self._pools if key[0] == seed]:
            del self._pools[key]
        return {}

    def _paths(self, seed: int, pool: str) -> Tensors:
        """How long paths go by the nearest training image, and how far apart their images are."""
        joined, distances = self._pools[seed, pool]
        points = self.source.long_points
        paths = joined.pixels.split(points)
        within = torch.stack([self.reference.measure_lpips(path) for path in paths])
        upper = torch.triu_indices(points, points, offset=1)
        return {
            "nearest": distances.lpips_to_train().view(-1, points),
            "smoothness": within.diagonal(offset=1, dim1=1, dim2=2).mean(dim=1),
            "variety": within[:, upper[0], upper[1]].mean(dim=1),
            "groups": distances.groups.view(-1, points)[:, 0],
            "pairs": joined.pairs.view(-1, points)[:, 0],
        }

    def _pool(self, seed: int, arm: str) -> Pool:
        return self._pools[seed, self.arms[arm].pool][0]

    def _chosen(self, seed: int, arm: str) -> Tensor:
        """Indices of an arm's images in its pool; of long paths every point."""
        kind, pool = self.arms[arm], self._pool(seed, arm)
        if POOLS[kind.pool].long:
            return select(pool, kind, None, self.source.published_pairs if kind.common else None)
        return select(pool, kind, self.quotas)

    # Classifiers

    def _images(self, seed: int, arm: str) -> tuple[Tensor, Tensor]:
        """Pixels and labels of an arm."""
        if not ARMS[arm].pool:
            return self.train.pixels, self.train.labels
        pool, chosen = self._pool(seed, arm), self._chosen(seed, arm)
        return pool.pixels[chosen], pool.labels[chosen]

    def _classifier(self, seed: int, arm: str) -> Tensors:
        pixels, labels = self._images(seed, arm)
        if self._reason(seed, arm):
            return {"logits": torch.empty(0)}
        network = self._trained(pixels, labels, stream_seed(seed, TARGET))  # the same start in every arm
        found = {"logits": classify(network, self.judged, self.settings)}
        if arm == JUDGE:
            for other in ARMS:
                if other != JUDGE and not self._reason(seed, other):
                    found[other] = classify(network, self._images(seed, other)[0], self.settings)
        return found

    def _shadow(self, seed: int, number: int) -> Tensors:
        half = self._halves(seed)[number]
        pixels, labels = self.judged[half], self.judged_labels[half]
        if set(labels.tolist()) != set(self.quotas):
            return {"logits": torch.empty(0)}
        network = self._trained(pixels, labels, stream_seed(seed, SHADOW, number))
        return {"logits": classify(network, self.judged, self.settings)}

    def _trained(self, pixels: Tensor, labels: Tensor, seed: int) -> nn.Module:
        options: dict[str, Any] = {"device": self.device, "squeezenet_file": self.reference.squeezenet_file}
        return train_classifier(pixels, labels, len(self.quotas), self.settings, seed, **options)

    def _halves(self, seed: int) -> Tensor:
        return random_halves(self.judged_patients, self.n_shadows, stream_seed(seed, HALF))

    # Estimates

    def _reason(self, seed: int, arm: str) -> str:
        """Says why an arm cannot be compared; empty where it can."""
        if not self.arms[arm].pool or arm in self.long_arms:
            return ""
        pool = self._pool(seed, arm)
        labels = pool.labels[self._chosen(seed, arm)]
        for label, quota in self.quotas.items():
            found = int((labels == label).sum())
            if found < quota:
                made = int((pool.labels == label).sum())
                return f"only {found} of {made} images of {self.data.class_names[label]} pass the gate, not {quota}"
        return ""

    def _figures(self, seed: int, arm: str) -> Tensors:
        """All figures of an arm and seed, as they are kept."""
        reason = self._reason(seed, arm)
        if reason:
            return _packed({"": Estimate(reason=reason)})
        figures = self._path_figures(seed, arm) if arm in self.long_arms else self._classifier_figures(seed, arm)
        if self.arms[arm].pool:
            figures |= self._cohort_figures(seed, arm)
        return _packed(figures)

    def _classifier_figures(self, seed: int, arm: str) -> dict[str, Estimate]:
        train, test = self.train, self.test
        logits = self._read(seed, f"classifier_{arm}")["logits"]
        n = len(train.pixels)
        attack = stream_seed(seed, ATTACK)
        pixels, labels = self._images(seed, arm)
        sides = (logits[:n], logits[n:]), (train.labels, test.labels), (train.patients, test.patients)
        ordered = self.data.modality.ordered
        figures = {
            **accuracy_figures(logits[n:], test.labels, self.test_draws, ordered),
            **label_figures(*self._judged_labels(seed, arm), ordered),
            **shortcut_figures(pixels, labels, test.pixels, test.labels, self.test_draws, attack, ordered),
            **attack_by_outputs(*sides, seed=attack),
        }
        shadows = [self._read(seed, f"shadow_{number:02d}")["logits"] for number in range(self.n_shadows)]
        if any(not len(shadow) for shadow in shadows):
            absent = Estimate(reason="a half of the real images shows not every class: too few for shadow models")
            return figures | {"lira_auc": absent, "lira_tpr": absent}
        scores = likelihood_ratios(
            confidence(logits, self.judged_labels),
            torch.stack([confidence(shadow, self.judged_labels) for shadow in shadows]),
            self._halves(seed),
        )
        return figures | ratio_figures(scores[:n], scores[n:], train.patients, test.patients)

    def _judged_labels(self, seed: int, arm: str) -> tuple[Tensor, Tensor, list[NDArray[np.int64]]]:
        """What the judge says of an arm's images, their labels and draws of their pairs; test images in its own arm."""
        logits = self._read(seed, f"classifier_{JUDGE}")
        if arm == JUDGE:
            return logits["logits"][len(self.train.pixels) :], self.test.labels, self.test_draws
        distances, chosen = self._pools[seed, self.arms[arm].pool][1], self._chosen(seed, arm)
        draws = patient_draws(distances.groups[chosen], DRAWS, DRAW_SEED, distances.n_groups)
        return logits[arm], self._images(seed, arm)[1], draws

    def _part_of(self, seed: int, arm: str) -> Distances:
        """The images of an arm as a cohort."""
        distances = self._pools[seed, self.arms[arm].pool][1]
        part = distances.of(self._chosen(seed, arm), self.folder / f"{seed}" / arm, DRAW_SEED)
        part.within_step().run()
        return part

    def _cohort_figures(self, seed: int, arm: str) -> dict[str, Estimate]:
        part, pool, chosen = self._part_of(seed, arm), self._pool(seed, arm), self._chosen(seed, arm)
        found = measure(part, part.sides(DRAW_SEED), DRAW_SEED)
        figures = {key: columns["cohort"] for key, columns in found.items() if key in AUDIT_MEASURES}
        draws = patient_draws(part.groups, DRAWS, DRAW_SEED, part.n_groups)
        figures["recognised"] = share(pool.recognised[chosen], draws)
        figures["mislabelled"] = share(pool.mislabelled[chosen], draws)
        return figures | self._distribution(part)

    def _strangers(self, seed: int) -> Tensors:
        """The audit's figures of test images and of training images in the place of a cohort."""
        part = self._part_of(seed, "linear")
        found = measure(part, part.sides(DRAW_SEED), DRAW_SEED)
        columns = ("test", "training")
        return _packed({f"{column} {key}": found[key][column] for key in found for column in columns})

    def _distribution(self, part: Distances) -> dict[str, Estimate]:
        """KID and Fréchet distance of all images of an arm, with intervals of halves of pairs and of patients."""
        train = self.reference.features["train"][self.real.own]
        mine = part.rows["features"]
        patients = self.train.patients
        statistics: dict[str, Callable[[Tensor, Tensor], float]] = {"kid_all": kid, "frechet_all": frechet_distance}
        figures = {}
        for name, statistic in statistics.items():
            random = np.random.default_rng(DRAW_SEED)
            replicates = []
            for _ in range(HALVES):
                own = _half_of_groups(part.groups, part.n_groups, random)
                others = half_samples(patients, len(patients), random)[0]
                replicates.append(statistic(mine[own], train[others]))
            value = statistic(mine, train)
            # A half differs from the whole as the whole does from another draw; a bias of small sets is taken out.
            figures[name] = estimate(value, np.array(replicates) - np.mean(replicates) + value, len(mine))
        return figures

    def _path_figures(self, seed: int, arm: str) -> dict[str, Estimate]:
        kind = self.arms[arm]
        paths = self.curves(kind.pool, seed)
        chosen = paths["pairs"] < (self.source.published_pairs if kind.common else len(paths["pairs"]))
        n_groups = self._pools[seed, kind.pool][1].n_groups
        draws = patient_draws(paths["groups"][chosen], DRAWS, DRAW_SEED, n_groups)
        figures = {}
        for key, name in (("smoothness", "smoothness"), ("variety", "path_variety")):
            values = paths[key][chosen].double()
            figures[name] = estimate(mean(values), bootstrap(values, draws, mean), len(values))
        return figures

    def _conclude(self) -> Tensors:
        self.results = write_evaluation(self)
        return {}


def _half_of_groups(groups: Tensor, n_groups: int | None, random: np.random.Generator) -> Tensor:
    """Returns the images of half of the groups: of those that are there, the first in an order of all that may be."""
    order = torch.from_numpy(random.permutation(n_groups or int(groups.max()) + 1))
    present = order[torch.isin(order, groups)]
    return torch.isin(groups, present[: max(1, len(present) // 2)]).nonzero()[:, 0]


def _packed(figures: Mapping[str, Estimate]) -> Any:
    return {
        key: {
            "numbers": [value.value, value.low, value.high],
            "n": value.n,
            "reason": value.reason,
            "replicates": torch.from_numpy(np.ascontiguousarray(value.replicates)),
        }
        for key, value in figures.items()
    }


def _read_figures(path: Path) -> dict[str, Estimate]:
    content = load_tensors(path)
    return {
        key: Estimate(
            **dict(zip(("value", "low", "high"), entry["numbers"], strict=True)),
            n=entry["n"],
            reason=entry["reason"],
            replicates=entry["replicates"].numpy(),
        )
        for key, entry in content.items()
    }
