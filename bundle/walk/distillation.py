# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Distillation of the guides: they are asked, students fitted, walked on, and corrected where the walks went.

It stands with the walk, and not with the other trainings, because students learn from the points that walks visit.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from tqdm import tqdm

from bundle.allocator import keep_freed_memory
from bundle.files import load_tensors, save_tensors, write_json
from bundle.latent.pairs import pair_latents
from bundle.latent.prior import LatentPrior
from bundle.networks.latent_guides import LATENT_GUIDES, LatentGuide, new_latent_guide
from bundle.networks.model_set import ModelSet
from bundle.networks.weights import load_weights
from bundle.training.latent_guide_trainer import LabelledLatents, LatentGuideTrainer, ask_guides, draw_latents
from bundle.training.seeds import stream_seed
from bundle.walk.guides import Guides, ImageGuides, LatentGuides
from bundle.walk.inferer import PlanWalkInferer
from bundle.walk.objective import class_cross_entropy, identity_divergence

__all__ = ["LATENT_TEACHERS", "agreement", "train_latent_guides", "trajectories", "visited_latents"]

#: Networks that the latent guides are distilled from.
LATENT_TEACHERS = ("generator", *(teacher for teacher, _ in LATENT_GUIDES.values()))

# Streams of random numbers that one seed stands for: latents where walks begin, walks to learn from, walks to be
# measured on, latents to be measured on.
BEGINNINGS, VISITS, TRIAL, HELD_OUT = range(4)
# Walks of a class that go on at once, and points of a path.
PAIRS, POINTS = 32, 10
# Of the trial: walks of each class, and every how many steps the guides are asked.
TRIAL_PAIRS, TRIAL_STRIDE = 16, 6
HELD_OUT_LATENTS = 4096
# Points that the guides are asked about at once: few, so that what they compute stays in a core's cache.
AT_ONCE = 8


def trajectories(
    models: ModelSet,
    guides: Guides,
    prior: LatentPrior,
    pairs: range,
    label: int,
    seed: int,
    n_points: int,
    weights: Mapping[str, float] | None = None,
) -> Tensor:
    """Walks, and keeps every step.

    Args:
        models: the generator.
        guides: what the walk asks.
        prior: of the mapping network.
        pairs: numbers of the pairs of end points.
        label: their class.
        seed: of the end points.
        n_points: points of a path.
        weights: of the objective's terms, see `bundle.walk.objective.make_objective`.

    Returns:
        The inner points [S + 1, P, n_points - 2, w_dim]: before each step, and at the end.
    """
    generator = models.generator
    device = next(generator.parameters()).device
    z = pair_latents(pairs, label, generator.z_dim, generator.num_classes, seed).to(device)
    steps: list[Tensor] = []
    inferer = PlanWalkInferer(
        guides, prior, n_points, weights=weights, on_step=lambda points: steps.append(points.clone())
    )
    path = inferer(z, generator, torch.full((len(pairs),), label, device=device))
    return torch.stack([*steps, path["w"][:, 1:-1]])


def _visited(n_latents: int) -> tuple[int, int]:
    """Blocks of walks that leave at least so many latents, two of each point that moves; and how many they leave."""
    of_a_block = 2 * PAIRS * (POINTS - 2)
    blocks = -(-n_latents // of_a_block)
    return blocks, blocks * of_a_block


def visited_latents(
    models: ModelSet,
    guides: Guides,
    prior: LatentPrior,
    n_latents: int,
    seed: int,
    weights: Mapping[str, float] | None = None,
) -> Tensor:
    """Collects points that walks visit: of each walked point its last place, and its place at a step drawn at random.

    Args:
        models: the generator.
        guides: what the walk asks.
        prior: of the mapping network.
        n_latents: how many, at least.
        seed: of the end points and of the steps.
        weights: of the objective's terms, see `bundle.walk.objective.make_objective`.

    Returns:
        w [N, w_dim], on the CPU.
    """
    classes = models.generator.num_classes
    random = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    blocks, _ = _visited(n_latents)
    for block in tqdm(range(blocks), desc="walking to learn from it", unit="block", mininterval=5.0):
        pairs = range(block // classes * PAIRS, (block // classes + 1) * PAIRS)
        steps = trajectories(models, guides, prior, pairs, block % classes, seed, POINTS, weights).cpu()
        chosen = torch.randint(0, len(steps), steps.shape[1:3], generator=random)
        somewhere = steps.gather(0, chosen[None, :, :, None].expand(1, -1, -1, steps.shape[3]))[0]
        found += [steps[-1].flatten(0, 1), somewhere.flatten(0, 1)]
    return torch.cat(found)


@torch.no_grad()
def _asked(guides: Guides, points: Tensor, label: int) -> tuple[Tensor, Tensor]:
    """Identity divergence and class cross-entropy of points [..., w_dim] of one class, each [...]."""
    answers = [guides(part) for part in points.flatten(0, -2).split(AT_ONCE)]
    identity, classes = (torch.cat(parts) for parts in zip(*answers, strict=True))
    target = torch.tensor([label], device=points.device)
    divergence, entropy = identity_divergence(identity), class_cross_entropy(classes.unsqueeze(0), target)[0]
    return divergence.view(points.shape[:-1]).cpu(), entropy.view(points.shape[:-1]).cpu()


def agreement(
    models: ModelSet, students: Guides, prior: LatentPrior, seed: int, weights: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Walks between pairs that no training has seen, and compares what students and guides say along the way.

    Args:
        models: the generator and the guides.
        students: what the walk asks.
        prior: of the mapping network.
        seed: of the end points.
        weights: of the objective's terms, see `bundle.walk.objective.make_objective`.

    Returns:
        Of the points of all walks at every sixth step: ``rank_correlation`` (Spearman's) of the identity divergence,
        ``rank_correlation_class`` of the class's cross-entropy; ``rank_correlation_of_a_path``, the median over paths
        of the former; and in nats, means over points: ``identity_divergence_linear``, ``identity_divergence`` where the
        walks end, and ``identity_divergence_promised``, the students' word for it.
    """
    judge = ImageGuides(models.generator, models.networks["identity_guide"], models.networks["class_guide"], amp=False)
    answers: list[list[Tensor]] = [[], [], [], []]
    for label in range(models.generator.num_classes):
        steps = trajectories(models, students, prior, range(TRIAL_PAIRS), label, seed, POINTS, weights)
        steps = steps[[*range(0, len(steps) - 1, TRIAL_STRIDE), len(steps) - 1]]
        for kept, answer in zip(answers, (*_asked(judge, steps, label), *_asked(students, steps, label)), strict=True):
            kept.append(answer)
    # Of each class; the walks of one may settle sooner than those of another.
    divergence, entropy, promised, promised_entropy = answers
    of_paths = [
        spearmanr(guide[:, path].flatten(), student[:, path].flatten()).statistic
        for guide, student in zip(divergence, promised, strict=True)
        for path in range(guide.shape[1])
    ]
    return {
        "rank_correlation": _correlation(divergence, promised),
        "rank_correlation_of_a_path": statistics.median(of_paths),
        "rank_correlation_class": _correlation(entropy, promised_entropy),
        "identity_divergence_linear": _mean_at(0, divergence),
        "identity_divergence": _mean_at(-1, divergence),
        "identity_divergence_promised": _mean_at(-1, promised),
    }


def _correlation(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Spearman's, of all values of all classes."""
    return float(spearmanr(*(torch.cat([part.flatten() for part in parts]) for parts in (first, second))).statistic)


def _mean_at(step: int, values: Sequence[Tensor]) -> float:
    """Mean over classes, paths and points of values [steps, P, n] of each class, at one step."""
    return float(torch.stack([part[step] for part in values]).mean())


def train_latent_guides(
    models: ModelSet,
    trainers: Mapping[str, Callable[..., LatentGuideTrainer]],
    tracking: Callable[..., Any],
    output_dir: str,
    n_latents: int,
    n_visited: int,
    rounds: int,
    weights: Mapping[str, float],
    seed: int,
    device: str | torch.device,
) -> None:
    """Distils the guides.

    The guides are asked about latents where walks begin, and students are fitted. Then, round by round, walks on the
    students show where these lead the optimiser; the guides are asked about those places too, and the students are
    fitted to everything that is known (DAgger: Ross et al., AISTATS 2011). Whatever a run that was stopped has
    finished is not done again.

    Args:
        models: generator and guides.
        trainers: make the trainer of each of `LATENT_GUIDES`, given what only this function knows.
        tracking: makes the handler that records a training, given the name of its run.
        output_dir: gets ``models/latent_*``; meanwhile ``latents/`` holds what is needed to go on.
        n_latents: latents where walks begin.
        n_visited: latents that walks visit, in each round.
        rounds: how often the students are corrected.
        weights: of the walks' objective, see `bundle.walk.objective.make_objective`.
        seed: of everything.
        device: where to compute.
    """
    keep_freed_memory()
    generator = models.generator
    teachers = {name: models.networks[teacher] for name, (teacher, _) in LATENT_GUIDES.items()}
    prior = LatentPrior(generator)
    work = Path(output_dir) / "latents"

    def trainer_of(
        name: str, number: int, dataset: LabelledLatents, network: LatentGuide, **options: Any
    ) -> LatentGuideTrainer:
        home = Path(output_dir) if number == rounds else work / f"round_{number}"
        return trainers[name](
            infos=models.infos,
            dataset=dataset,
            network=network,
            output_dir=home,
            settings={"round": number},
            train_handlers=[tracking(run_name=f"{name}, round {number}")],
            **options,
        )

    # Whether these students are there, or those of another training, is told by the number of their latents.
    number_of_latents = n_latents + rounds * _visited(n_visited)[1]
    nothing = torch.zeros(1, 1).expand(number_of_latents, 1)
    unasked = LabelledLatents(nothing, nothing)
    untrained = {name: new_latent_guide(name, teachers[name], generator.w_dim) for name in LATENT_GUIDES}
    if all(trainer_of(name, rounds, unasked, network, examine=dict).is_saved for name, network in untrained.items()):
        print(f"{output_dir}/models has these students, complete and as they were written. Nothing to train.")
        shutil.rmtree(work, ignore_errors=True)
        return
    cost = _Cost(work / "cost.json")

    def ask(w: Tensor, name: str, title: str) -> dict[str, Tensor]:
        return ask_guides(generator, teachers, w, work / name, title)

    unseen, _ = draw_latents(generator, range(HELD_OUT_LATENTS), stream_seed(seed, HELD_OUT))
    held_out = ask(unseen, "held_out", "asking the guides: held out")
    w, _ = draw_latents(generator, range(n_latents), stream_seed(seed, BEGINNINGS))
    known = [(w.cpu(), ask(w, "beginnings", "asking the guides: where walks begin"))]
    cost.keep()
    students: dict[str, LatentGuide] = {}
    for number in range(rounds + 1):
        if number > 0:
            visit_seed = stream_seed(seed, VISITS, number)
            w = _kept(
                work / f"visited_{number}.pt",
                lambda: visited_latents(models, _latent_guides(students), prior, n_visited, visit_seed, weights),  # noqa: B023
            )
            known.append((w, ask(w, f"visited_{number}", f"asking the guides: where walks go, round {number}")))
            cost.keep()
        latents = torch.cat([w for w, _ in known])
        for name in reversed(LATENT_GUIDES):  # the walk, by which the identity's student is measured, needs the class's
            dataset = LabelledLatents(latents, torch.cat([said[name] for _, said in known]))
            network = new_latent_guide(name, teachers[name], generator.w_dim)
            if name in students:
                network.load_state_dict(students[name].state_dict())
            else:
                network.standardise(latents)
            examine = partial(_examine, models, prior, weights, unseen, held_out, students, name, seed, cost)
            trainer = trainer_of(name, number, dataset, network, examine=examine)
            trainer.run()
            student, _ = load_weights(trainer.weights_path, device)
            assert isinstance(student, LatentGuide)
            students[name] = student
            cost.keep()
    shutil.rmtree(work)


def _latent_guides(students: Mapping[str, LatentGuide]) -> LatentGuides:
    return LatentGuides(students["latent_identity"], students["latent_class"])


class _Cost:
    """CPU seconds that the distillation has taken, over all runs that it took; only what was finished counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._before = float(json.loads(path.read_text())) if path.exists() else 0.0
        self._start = self._used()

    def seconds(self) -> float:
        """All so far."""
        return self._before + self._used() - self._start

    @staticmethod
    def _used() -> float:
        times = os.times()  # worker processes that have ended included
        return times.user + times.system + times.children_user + times.children_system

    def keep(self) -> None:
        """Keeps the figure for a run that goes on from here."""
        write_json(self.path, self.seconds())


def _kept(path: Path, make: Callable[[], Tensor]) -> Tensor:
    """Loads a tensor that an earlier run has left, or makes it and leaves it."""
    if not path.exists():
        save_tensors(path, make())
    tensor: Tensor = load_tensors(path)
    return tensor


@torch.no_grad()
def _examine(
    models: ModelSet,
    prior: LatentPrior,
    weights: Mapping[str, float],
    unseen: Tensor,
    held_out: Mapping[str, Tensor],
    students: Mapping[str, LatentGuide],
    name: str,
    seed: int,
    cost: _Cost,
    student: nn.Module,
) -> dict[str, Any]:
    """Measures a student on latents where walks begin, and the identity's on walks as well."""
    assert isinstance(student, LatentGuide)
    logits = student.closed_set(unseen).cpu()
    wanted = student.closed_set_of(held_out[name].to(unseen.device).float()).cpu()
    scores: dict[str, Any] = {"n": len(unseen)}
    if student.arguments["identity"]:
        divergences = [identity_divergence(values) for values in (logits, wanted)]
        scores["rank_correlation"] = float(spearmanr(*divergences).statistic)
        walks = agreement(models, _latent_guides({**students, name: student}), prior, stream_seed(seed, TRIAL), weights)
        return {"scores": {"beginnings": scores, "walks": walks}, "cpu_seconds": round(cost.seconds())}
    scores["agreement"] = float((logits.argmax(dim=1) == wanted.argmax(dim=1)).double().mean())
    return {"scores": {"beginnings": scores}}
