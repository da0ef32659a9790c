# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The evaluation as an Ignite engine with one iteration per step; results are kept and the last step writes tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bundle.evaluation.classifiers import SeedClassifiers
from bundle.evaluation.estimates import ESTIMATES_MS, SeedEstimates
from bundle.evaluation.report import evaluation_results, write_evaluation
from bundle.evaluation.seed_pools import SeedPools
from bundle.evaluation.setting import Setting
from bundle.steps import Step, StepEngine, Tensors

__all__ = ["EvaluationEngine"]


@dataclass(frozen=True)
class ArmStep(Step):
    """A step that computes the estimates of one arm and seed.

    Attributes:
        arm: name of the arm.
        estimates: estimates of the seed.
    """

    arm: str = ""
    estimates: SeedEstimates | None = None


class EvaluationEngine(StepEngine):
    """Compares arms over seeds and writes the report.

    An interrupted run resumes: the parts of the pools, the classifiers and the estimates are kept in
    ``private/evaluation``, in a folder named after a hash of everything that they depend on. Several processes can
    compute different seeds at the same time; a final run with all seeds then uses their results.

    Args:
        setting: real images, networks and options, and where results are kept.
        seeds: seeds of end points, classifiers and attacks.
        handlers: further Ignite handlers.

    Attributes:
        results: content of results.json; empty until the engine has run.
    """

    def __init__(
        self,
        setting: Setting,
        seeds: Sequence[int],
        handlers: Sequence[Any] | None = None,
    ) -> None:
        super().__init__("evaluating", handlers)
        self.setting, self.output_dir = setting, setting.output_dir
        self.seeds = {seed: SeedEstimates(SeedClassifiers(SeedPools(self.setting, seed))) for seed in seeds}
        self.results: dict[str, Any] = {}
        self.steps = list(self._steps())

    def take(self, step: Step) -> dict[str, Any]:
        """Runs one step; if it is an `ArmStep`, returns and records the estimates of the arm."""
        step.run()
        if not isinstance(step, ArmStep) or step.estimates is None:
            return {"arm": "", "seed": "", "metrics": {}}
        found = step.estimates.of_arm(step.arm)
        metrics = {key: value.value for key, value in found.items() if not value.reason}
        self.state.metrics.update({f"{step.arm}/{key}": value for key, value in metrics.items()})
        return {"arm": step.arm, "seed": f"{step.estimates.seed}", "metrics": metrics}

    def _steps(self) -> Iterator[Step]:
        yield from self.setting.reference.steps()
        for number, (seed, estimates) in enumerate(self.seeds.items()):
            yield from estimates.pools.steps()
            yield from estimates.classifiers.steps()
            for arm, step in estimates.steps():
                yield ArmStep(step.name, step.cost, step.compute, step.path, arm, estimates)
            if number == 0:
                yield estimates.strangers_step()
            yield Step(f"release seed {seed}", 1.0, lambda pools=estimates.pools: _release(pools))  # type: ignore[misc]
        yield Step("tables", ESTIMATES_MS, self._conclude)

    def _conclude(self) -> Tensors:
        first = next(iter(self.seeds.values()))
        self.results = evaluation_results(
            self.setting,
            tuple(self.seeds),
            {arm: [seed.of_arm(arm) for seed in self.seeds.values()] for arm in self.setting.arms},
            first.strangers(),
            {
                pool: torch.cat([seed.pools.curves(pool)["nearest"] for seed in self.seeds.values()])
                for pool in self.setting.pools
                if pool.startswith("long")
            },
        )
        write_evaluation(self.output_dir, self.results)
        return {}


def _release(pools: SeedPools) -> Tensors:
    pools.release()
    return {}
