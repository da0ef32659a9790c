# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Distillation of the guides into students that predict from w: fitted, walked on, and corrected where the walks led.

It belongs to the walk stage and not to training because the students learn from points that walks visit.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from bundle.allocator import keep_freed_memory
from bundle.files import load_tensors, save_tensors, write_json
from bundle.networks.latent_guides import LATENT_GUIDES, LatentGuide, LatentRealism, new_latent_guide
from bundle.networks.model_set import ModelSet
from bundle.networks.weights import load_weights
from bundle.options import OptionError
from bundle.training.latent_guide_trainer import LabelledLatents, LatentGuideTrainer, ask_guides, draw_latents
from bundle.training.seeds import stream_seed
from bundle.walk.guides import LatentGuides
from bundle.walk.objective import PublishedObjective, identity_divergence
from bundle.walk.trajectories import NewWalk, agreement, visited_latents, visits

__all__ = ["LATENT_TEACHERS", "TRIAL", "Distillation"]

#: Networks that the latent guides are distilled from.
LATENT_TEACHERS = ("generator", *(teacher for teacher, _ in LATENT_GUIDES.values()))

# Random streams derived from one seed: start latents to learn from, walks to learn from, walks to evaluate on, held-out
# start latents to evaluate on.
BEGINNINGS, VISITS, TRIAL, HELD_OUT = range(4)
HELD_OUT_LATENTS = 4096


class Distillation:
    """Trains the latent guides: students that predict from w what the guides predict from the image G(w).

    The guides are evaluated on latents where walks begin, and the students are fitted to the results. In each further
    round, walks on the students produce latents that the optimiser visits; the guides are evaluated there too, and the
    students are fitted to all data collected so far (DAgger: Ross et al., AISTATS 2011). A stopped run resumes without
    repeating finished parts.

    Args:
        models: generator and guides.
        new_walk: factory of the walk's inferer.
        new_trainer: factory of a student's trainer, called with the arguments that only this class knows.
        tracking: factory of the handler that records a training, called with ``run_name``.
        output_dir: folder that receives ``models/latent_*``; ``latents/`` in it holds intermediate data until the end.
        n_latents: number of latents where walks begin.
        n_visited: smallest number of visited latents in each round.
        rounds: number of correction rounds.
        seed: random seed from which all streams are derived.
        device: device on which trained students are loaded.
    """

    def __init__(
        self,
        models: ModelSet,
        new_walk: NewWalk,
        new_trainer: Callable[..., LatentGuideTrainer],
        tracking: Callable[..., Any],
        output_dir: str,
        n_latents: int,
        n_visited: int,
        rounds: int,
        seed: int,
        device: str | torch.device,
    ) -> None:
        self.models, self.new_walk = models, new_walk
        self.new_trainer, self.tracking = new_trainer, tracking
        self.output_dir, self.work = Path(output_dir), Path(output_dir) / "latents"
        self.n_latents, self.n_visited, self.rounds = n_latents, n_visited, rounds
        self.seed, self.device = seed, device
        self.teachers = {name: models.networks[teacher] for name, (teacher, _) in LATENT_GUIDES.items()}
        if isinstance(new_walk.keywords["objective"], PublishedObjective):
            raise OptionError(
                [
                    "objective: the published algorithm walks on the guides themselves and has no latent guides. Leave "
                    "configs/published.json out."
                ]
            )
        #: What the students' JSON files record of the walks that they were trained on.
        self.recorded = {
            "objective": dataclasses.asdict(new_walk.keywords["objective"]),
            "walk": dataclasses.asdict(new_walk.keywords["settings"]),
        }
        self.students: dict[str, LatentGuide] = {}

    def run(self) -> None:
        """Runs the distillation, unless its students exist already."""
        keep_freed_memory()
        if self._is_done():
            print(f"{self.output_dir}/models has these students, complete and as they were written. Nothing to train.")
            shutil.rmtree(self.work, ignore_errors=True)
            return
        cost = _Cost(self.work / "cost.json")
        generator = self.models.generator
        unseen, _ = draw_latents(generator, range(HELD_OUT_LATENTS), stream_seed(self.seed, HELD_OUT))
        examination = _Examination(
            self, unseen, self._ask(unseen, "held_out", "evaluating the guides: held-out latents"), cost
        )
        w, _ = draw_latents(generator, range(self.n_latents), stream_seed(self.seed, BEGINNINGS))
        known = [(w.cpu(), self._ask(w, "beginnings", "evaluating the guides: start of the walks"))]
        cost.keep()
        for number in range(self.rounds + 1):
            if number > 0:
                w = self._visited(number)
                title = f"evaluating the guides: visited latents, round {number}"
                known.append((w, self._ask(w, f"visited_{number}", title)))
                cost.keep()
            latents = torch.cat([w for w, _ in known])
            # Reversed because evaluating the identity student on walks requires the other students.
            for name in reversed(LATENT_GUIDES):
                self._fit(name, number, latents, torch.cat([said[name] for _, said in known]), examination)
                cost.keep()
        shutil.rmtree(self.work)

    def _is_done(self) -> bool:
        # The number of latents distinguishes these students from those of another training.
        nothing = torch.zeros(1, 1).expand(self.n_latents + self.rounds * visits(self.n_visited)[1], 1)
        unasked = LabelledLatents(nothing, nothing)
        untrained = {name: self._new_student(name) for name in LATENT_GUIDES}
        return all(
            self._trainer(name, self.rounds, unasked, network, lambda _: {}).is_saved
            for name, network in untrained.items()
        )

    def _new_student(self, name: str) -> LatentGuide:
        return new_latent_guide(name, self.teachers[name], self.models.generator.w_dim)

    def _ask(self, w: Tensor, name: str, title: str) -> dict[str, Tensor]:
        return ask_guides(self.models.generator, self.teachers, w, self.work / name, title)

    def _visited(self, number: int) -> Tensor:
        """Returns the latents that walks on the students visit in one round, from an earlier run's file if present."""
        path = self.work / f"visited_{number}.pt"
        if not path.exists():
            guides, seed = self.guides(), stream_seed(self.seed, VISITS, number)
            save_tensors(path, visited_latents(self.new_walk, guides, self.models.generator, self.n_visited, seed))
        visited: Tensor = load_tensors(path)
        return visited

    def guides(self, **students: LatentGuide) -> LatentGuides:
        """Returns the students as guides of a walk; keyword arguments replace those fitted last."""
        chosen = {**self.students, **students}
        return LatentGuides(chosen["latent_identity"], chosen["latent_class"], chosen["latent_realism"])

    def _trainer(
        self,
        name: str,
        number: int,
        dataset: LabelledLatents,
        network: LatentGuide,
        examine: Callable[[nn.Module], dict[str, Any]],
    ) -> LatentGuideTrainer:
        return self.new_trainer(
            name=name,
            infos=self.models.infos,
            dataset=dataset,
            network=network,
            output_dir=self.output_dir if number == self.rounds else self.work / f"round_{number}",
            settings={"round": number, **self.recorded},
            train_handlers=[self.tracking(run_name=f"{name}, round {number}")],
            examine=examine,
        )

    def _fit(self, name: str, number: int, latents: Tensor, said: Tensor, examination: _Examination) -> None:
        """Trains one student of one round, starting from that of the previous round."""
        network = self._new_student(name)
        if name in self.students:
            network.load_state_dict(self.students[name].state_dict())
        else:
            network.standardise(latents)
        dataset = LabelledLatents(latents, said)
        trainer = self._trainer(name, number, dataset, network, lambda student: examination.scores(name, student))
        trainer.run()
        student, _ = load_weights(trainer.weights_path, self.device)
        assert isinstance(student, LatentGuide)
        self.students[name] = student


class _Cost:
    """CPU seconds of the distillation, summed over all its runs; only finished parts count."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._before = float(json.loads(path.read_text())) if path.exists() else 0.0
        self._start = self._used()

    def seconds(self) -> float:
        """Returns the total so far."""
        return self._before + self._used() - self._start

    @staticmethod
    def _used() -> float:
        times = os.times()  # includes worker processes that have ended
        return times.user + times.system + times.children_user + times.children_system

    def keep(self) -> None:
        """Writes the total to disk for a run that resumes here."""
        write_json(self.path, self.seconds())


class _Examination:
    """Evaluates students on held-out latents, and the identity student on walks as well.

    Args:
        distillation: distillation that trains the students.
        unseen: held-out latents, [N, w_dim].
        held_out: the guides' features for these latents, by name of the student.
        cost: counter of the distillation's CPU seconds.
    """

    def __init__(self, distillation: Distillation, unseen: Tensor, held_out: Mapping[str, Tensor], cost: _Cost) -> None:
        self.distillation, self.unseen, self.held_out, self.cost = distillation, unseen, held_out, cost

    @torch.no_grad()
    def scores(self, name: str, student: nn.Module) -> dict[str, Any]:
        """Returns the evaluation results that the student's JSON records."""
        assert isinstance(student, LatentGuide)
        logits = student.closed_set(self.unseen).cpu()
        wanted = student.closed_set_of(self.held_out[name].to(self.unseen.device).float()).cpu()
        scores: dict[str, Any] = {"n": len(self.unseen)}
        if isinstance(student, LatentRealism):
            scores["rank_correlation"] = float(spearmanr(logits.flatten(), wanted.flatten()).statistic)
            return {"scores": {"beginnings": scores}}
        if student.arguments["identity"]:
            divergences = [identity_divergence(values) for values in (logits, wanted)]
            scores["rank_correlation"] = float(spearmanr(*divergences).statistic)
            whole = self.distillation
            guides, seed = whole.guides(**{name: student}), stream_seed(whole.seed, TRIAL)
            walks = agreement(whole.new_walk, guides, whole.models, seed)
            return {"scores": {"beginnings": scores, "walks": walks}, "cpu_seconds": round(self.cost.seconds())}
        scores["agreement"] = float((logits.argmax(dim=1) == wanted.argmax(dim=1)).double().mean())
        return {"scores": {"beginnings": scores}}
