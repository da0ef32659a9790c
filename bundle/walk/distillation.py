# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Distillation of the guides into students that predict from w: fitted, walked on, and corrected where the walks led.

It belongs to the walk stage and not to training because the students learn from points that walks visit.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable
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

__all__ = ["TRIAL", "Distillation", "networks_of"]

# Random streams derived from one seed: start latents to learn from, walks to learn from, walks to evaluate on, held-out
# start latents to evaluate on.
BEGINNINGS, VISITS, TRIAL, HELD_OUT = range(4)
HELD_OUT_LATENTS = 4096
# Share of n_latents and n_visited that a guide evaluates; others evaluate all. The judge of realism takes longer than
# all else, and its values are smooth in w.
SHARES = {"latent_realism": 1 / 16}


# Of each student, latents [N, w_dim] and its teacher's features for them, [N, features], on the CPU.
_Known = dict[str, tuple[Tensor, Tensor]]


def networks_of(students: str) -> tuple[str, ...]:
    """Returns the names of the networks that a `Distillation` needs: generator, guides and students that it keeps.

    Args:
        students: "all", or the name of the only student to train.
    """
    kept = () if students == "all" else (name for name in LATENT_GUIDES if name != students)
    return ("generator", *(teacher for teacher, _ in LATENT_GUIDES.values()), *kept)


class Distillation:
    """Trains the latent guides: students that predict from w what the guides predict from the image G(w).

    The guides are evaluated on latents where walks begin, and the students are fitted to the results. In each further
    round, walks on the students produce latents that the optimiser visits; the guides are evaluated there too, and the
    students are fitted to all data collected so far (DAgger: Ross et al., AISTATS 2011). A stopped run resumes without
    repeating finished parts.

    Args:
        models: the networks that `networks_of` names. Students among them are kept and steer the walks as they are.
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
        self.seed, self.device = seed, device
        self.students = {name: net for name, net in models.networks.items() if isinstance(net, LatentGuide)}
        self.teachers = {
            name: models.networks[teacher] for name, (teacher, _) in LATENT_GUIDES.items() if name not in self.students
        }
        shares = {name: SHARES.get(name, 1.0) for name in self.teachers}
        most = max(shares.values())
        # Latents that no student is trained on are not drawn.
        self.n_latents, self.n_visited = (math.ceil(most * count) for count in (n_latents, n_visited))
        self.shares = {name: share / most for name, share in shares.items()}
        self.rounds = rounds
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
        examination = _Examination(self, self._known(unseen, "held_out", "held-out latents"), cost)
        w, _ = draw_latents(generator, range(self.n_latents), stream_seed(self.seed, BEGINNINGS))
        known = [self._known(w, "beginnings", "start of the walks")]
        cost.keep()
        for number in range(self.rounds + 1):
            if number > 0:
                known.append(
                    self._known(self._visited(number), f"visited_{number}", f"visited latents, round {number}")
                )
                cost.keep()
            # Reversed because evaluating the identity student on walks requires the other students.
            for name in reversed(self.teachers):
                latents, said = (torch.cat(parts) for parts in zip(*(part[name] for part in known), strict=True))
                self._fit(name, number, latents, said, examination)
                cost.keep()
        shutil.rmtree(self.work)

    def _is_done(self) -> bool:
        # The number of latents distinguishes these students from those of another training.
        counts = (self.n_latents, *[visits(self.n_visited)[1]] * self.rounds)

        def unasked(name: str) -> LabelledLatents:
            nothing = torch.zeros(1, 1).expand(sum(self._asked(name, count) for count in counts), 1)
            return LabelledLatents(nothing, nothing)

        untrained = {name: self._new_student(name) for name in self.teachers}
        return all(
            self._trainer(name, self.rounds, unasked(name), network, lambda _: {}).is_saved
            for name, network in untrained.items()
        )

    def _asked(self, name: str, count: int) -> int:
        """Returns how many of ``count`` latents the teacher of a student evaluates."""
        return math.ceil(self.shares[name] * count)

    def _new_student(self, name: str) -> LatentGuide:
        return new_latent_guide(name, self.teachers[name], self.models.generator.w_dim)

    def _known(self, w: Tensor, name: str, title: str) -> _Known:
        """Evaluates the guides; returns for each student its latents and the features that its teacher gives them."""
        known: _Known = {}
        for number in {self._asked(student, len(w)) for student in self.teachers}:
            asked = {
                student: guide for student, guide in self.teachers.items() if self._asked(student, len(w)) == number
            }
            few, folder = w[:number], self.work / f"{name}_{'_'.join(asked)}"
            said = ask_guides(self.models.generator, asked, few, folder, f"evaluating the guides: {title}")
            known |= {student: (few.cpu(), features) for student, features in said.items()}
        return known

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
        held_out: held-out latents, and the guides' features for them.
        cost: counter of the distillation's CPU seconds.
    """

    def __init__(self, distillation: Distillation, held_out: _Known, cost: _Cost) -> None:
        self.distillation, self.held_out, self.cost = distillation, held_out, cost

    @torch.no_grad()
    def scores(self, name: str, student: nn.Module) -> dict[str, Any]:
        """Returns the evaluation results that the student's JSON records."""
        assert isinstance(student, LatentGuide)
        latents, features = (values.to(self.distillation.device).float() for values in self.held_out[name])
        logits, wanted = student.closed_set(latents).cpu(), student.closed_set_of(features).cpu()
        scores: dict[str, Any] = {"n": len(latents)}
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
