# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Estimates, with confidence intervals, of all measures of the arms of one seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bundle.auditing.assessment import HALVES, measure
from bundle.auditing.catalogue import MEASURES as AUDIT_MEASURES
from bundle.auditing.distances import Distances
from bundle.auditing.placebo import cohort_nearness, placebo_comparisons
from bundle.auditing.reference import EMBEDDING
from bundle.auditing.resampling import DRAWS, Estimate, bootstrap, estimate, half_samples, mean, patient_draws, share
from bundle.auditing.thresholds import Threshold, calibrated_thresholds
from bundle.evaluation.classifiers import ATTACK, JUDGE, SeedClassifiers
from bundle.evaluation.distinct import distinct_estimate, half_of_groups
from bundle.evaluation.membership import attack_by_outputs, confidence, likelihood_ratios, ratio_estimates
from bundle.evaluation.setting import DRAW_SEED
from bundle.evaluation.sources import pair_estimates
from bundle.evaluation.utility import accuracy_estimates, fitted_shortcuts, label_estimates, shortcut_estimates
from bundle.metrics.distribution import frechet_distance, kid
from bundle.steps import Step
from bundle.training.seeds import stream_seed

__all__ = ["ESTIMATES_MS", "SeedEstimates"]

#: CPU-milliseconds of an arm's estimates, for the progress bar.
ESTIMATES_MS = 15_000.0


class SeedEstimates:
    """Estimates of one seed, computed or read from disk when they are first needed.

    Args:
        classifiers: classifiers of the seed.
    """

    def __init__(self, classifiers: SeedClassifiers) -> None:
        self.classifiers, self.pools = classifiers, classifiers.pools
        self.setting, self.seed = classifiers.setting, classifiers.seed

    def steps(self) -> Iterator[tuple[str, Step]]:
        """Yields each arm and the step that computes its estimates."""
        for arm in self.setting.arms:
            yield arm, self._step(f"figures_{arm}", lambda arm=arm: self._of_arm(arm))  # type: ignore[misc]

    def of_arm(self, arm: str) -> dict[str, Estimate]:
        """Returns the estimates of an arm by measure; if there are none, only the reason, under the empty name."""
        return _unpacked(self._step(f"figures_{arm}", lambda: self._of_arm(arm)).result())

    def strangers_step(self) -> Step:
        """Returns the step that computes the audit's measures of real images in the place of a cohort."""
        return self._step("strangers", self._strangers)

    def strangers(self) -> dict[str, dict[str, Estimate]]:
        """Returns the audit's measures of ``test`` and ``training`` images in the place of a cohort, by column."""
        columns: dict[str, dict[str, Estimate]] = {"test": {}, "training": {}}
        for name, value in _unpacked(self.strangers_step().result()).items():
            column, _, key = name.partition(" ")
            columns[column][key] = value
        return columns

    def _step(self, name: str, compute: Callable[[], Any]) -> Step:
        return Step(f"{name} seed {self.seed}", ESTIMATES_MS, compute, self.pools.folder / f"{name}.pt")

    def _of_arm(self, arm: str) -> Any:
        reason = self.pools.shortage(arm)
        if reason:
            return _packed({"": Estimate(reason=reason)})
        found = self._of_paths(arm) if arm in self.setting.long_arms else self._of_classifier(arm)
        if self.setting.arms[arm].pool:
            found |= self._of_cohort(arm)
        return _packed(found)

    def _of_classifier(self, arm: str) -> dict[str, Estimate]:
        train, test = self.setting.train, self.setting.test
        logits = self.classifiers.logits(arm)["logits"]
        n = len(train.pixels)
        attack = stream_seed(self.seed, ATTACK)
        shortcuts = fitted_shortcuts(*self.pools.images(arm), attack)
        sides = (logits[:n], logits[n:]), (train.labels, test.labels), (train.patients, test.patients)
        draws, ordered = self.setting.test_draws, self.setting.data.modality.ordered
        found = {
            **accuracy_estimates(logits[n:], test.labels, draws, ordered),
            **pair_estimates(self.setting.source_pairs, logits[n:], test.labels, draws),
            **label_estimates(*self._shown_labels(arm), ordered),
            **shortcut_estimates(shortcuts, test.pixels, test.labels, draws, ordered),
            **attack_by_outputs(*sides, seed=attack),
            **self._of_external(arm, shortcuts),
        }
        shadows = self.classifiers.shadow_logits()
        if shadows is None:
            absent = Estimate(reason="a half of the real images shows not every class: too few for shadow models")
            return found | {"lira_auc": absent, "lira_tpr": absent}
        wanted = self.setting.judged_labels
        scores = likelihood_ratios(
            confidence(logits, wanted),
            torch.stack([confidence(shadow, wanted) for shadow in shadows]),
            self.classifiers.halves,
        )
        return found | ratio_estimates(scores[:n], scores[n:], train.patients, test.patients)

    def _of_external(self, arm: str, shortcuts: Mapping[str, Callable[[Tensor], Tensor]]) -> dict[str, Estimate]:
        """Returns accuracy and shortcuts on the external images, with the prefix ``external_``; nothing without any."""
        external, draws = self.setting.external, self.setting.external_draws
        if external is None:
            return {}
        ordered, logits = self.setting.data.modality.ordered, self.classifiers.logits(arm)["external"]
        found = {
            **accuracy_estimates(logits, external.labels, draws, ordered),
            **shortcut_estimates(shortcuts, external.pixels, external.labels, draws, ordered),
        }
        return {f"external_{key}": value for key, value in found.items()}

    def _shown_labels(self, arm: str) -> tuple[Tensor, Tensor, list[NDArray[np.int64]]]:
        """Returns the judge's logits for an arm's images, their labels and draws; for its own arm, of test images."""
        setting, logits = self.setting, self.classifiers.logits(JUDGE)
        if arm == JUDGE:
            return logits["logits"][len(setting.train.pixels) :], setting.test.labels, setting.test_draws
        groups, n_groups = self.pools.groups(setting.arms[arm].pool)
        draws = patient_draws(groups[self.pools.chosen(arm)], DRAWS, DRAW_SEED, n_groups)
        return logits[arm], self.pools.images(arm)[1], draws

    def _of_cohort(self, arm: str) -> dict[str, Estimate]:
        part, pool, chosen = self.pools.cohort(arm), self.pools.arm_pool(arm), self.pools.chosen(arm)
        sides = part.sides(DRAW_SEED)
        found = measure(part, sides, self.thresholds, DRAW_SEED)
        estimates = {key: columns["cohort"] for key, columns in found.items() if key in AUDIT_MEASURES}
        groups, n_groups = part.groups, part.n_groups
        estimates["distinct"] = distinct_estimate(
            part.rows["point"], groups, n_groups, self.thresholds[EMBEDDING], DRAW_SEED
        )
        estimates["cpu_seconds"] = self._cost(arm)
        draws = patient_draws(groups, DRAWS, DRAW_SEED, n_groups)
        estimates["recognised"] = share(pool.recognised[chosen], draws)
        estimates["mislabelled"] = share(pool.mislabelled[chosen], draws)
        estimates["unrealistic"] = share(pool.unrealistic[chosen], draws)
        found_placebo = placebo_comparisons(
            cohort_nearness(part), self.setting.reference, self.setting.real.own, DRAW_SEED
        )
        for key, value in found_placebo.items():
            estimates |= {
                f"{key}_members": value.members,
                f"{key}_placebo": value.placebo,
                f"{key}_specific": value.difference,
            }
        return estimates | self._distribution(part)

    def _strangers(self) -> Any:
        part, reference = self.pools.cohort("linear"), self.setting.reference
        sides = part.sides(DRAW_SEED)
        found = measure(part, sides, self.thresholds, DRAW_SEED)
        estimates: dict[str, Estimate] = {}
        for column, role in (("test", "test"), ("training", "train")):
            points, patients = reference.points[EMBEDDING][role], reference.real[role].patients
            distinct = distinct_estimate(points, patients, None, self.thresholds[EMBEDDING], DRAW_SEED)
            values = {key: found[key][column] for key in found} | {"distinct": distinct}
            estimates |= {f"{column} {key}": value for key, value in values.items()}
        return _packed(estimates)

    @cached_property
    def thresholds(self) -> dict[str, Threshold]:
        """See `calibrated_thresholds`."""
        return calibrated_thresholds(self.setting.reference)

    def _cost(self, arm: str) -> Estimate:
        """Estimates the CPU seconds of a released image: those of all images up to the last one that an arm takes."""
        pool, chosen = self.pools.arm_pool(arm), self.pools.chosen(arm)
        groups, n_groups = self.pools.groups(self.setting.arms[arm].pool)
        places, labels = torch.arange(len(pool.labels)), pool.labels[chosen]
        ends = {label: int(chosen[labels == label].max()) for label in labels.unique().tolist()}
        made = torch.cat([places[(pool.labels == label) & (places <= end)] for label, end in ends.items()])
        seconds, taken = pool.cpu_seconds[made].numpy(), torch.isin(made, chosen).double().numpy()
        draws = patient_draws(groups[made], DRAWS, DRAW_SEED, n_groups)
        with np.errstate(divide="ignore"):
            replicates = np.array([seconds[draw].sum() / taken[draw].sum() for draw in draws])
        return estimate(seconds.sum() / len(chosen), np.where(np.isinf(replicates), np.nan, replicates), len(chosen))

    def _distribution(self, part: Distances) -> dict[str, Estimate]:
        """Estimates KID and Fréchet distance of all images of an arm, with intervals from half-samples."""
        train = self.setting.reference.features["train"][self.setting.real.own]
        mine, patients = part.rows["features"], self.setting.train.patients
        statistics: dict[str, Callable[[Tensor, Tensor], float]] = {"kid_all": kid, "frechet_all": frechet_distance}
        found = {}
        for name, statistic in statistics.items():
            random = np.random.default_rng(DRAW_SEED)
            replicates = []
            for _ in range(HALVES):
                own = half_of_groups(part.groups, part.n_groups, random)
                others = half_samples(patients, len(patients), random)[0]
                replicates.append(statistic(mine[own], train[others]))
            value = statistic(mine, train)
            # Half-samples deviate from the whole about as the whole from the population; centring removes their bias.
            found[name] = estimate(value, np.array(replicates) - np.mean(replicates) + value, len(mine))
        return found

    def _of_paths(self, arm: str) -> dict[str, Estimate]:
        kind = self.setting.arms[arm]
        paths = self.pools.curves(kind.pool)
        chosen = paths["pairs"] < (self.setting.source.published_pairs if kind.common else len(paths["pairs"]))
        n_groups = self.pools.groups(kind.pool)[1]
        draws = patient_draws(paths["groups"][chosen], DRAWS, DRAW_SEED, n_groups)
        found = {}
        for key, name in (("smoothness", "smoothness"), ("variety", "path_variety")):
            values = paths[key][chosen].double()
            found[name] = estimate(mean(values), bootstrap(values, draws, mean), len(values))
        return found


def _packed(estimates: Mapping[str, Estimate]) -> Any:
    return {
        key: {
            "numbers": [value.value, value.low, value.high],
            "n": value.n,
            "reason": value.reason,
            "replicates": torch.from_numpy(np.ascontiguousarray(value.replicates)),
        }
        for key, value in estimates.items()
    }


def _unpacked(content: Mapping[str, Any]) -> dict[str, Estimate]:
    return {
        key: Estimate(
            **dict(zip(("value", "low", "high"), entry["numbers"], strict=True)),
            n=entry["n"],
            reason=entry["reason"],
            replicates=entry["replicates"].numpy(),
        )
        for key, entry in content.items()
    }
