# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""What a released image costs, and what it is worth, by three walks between the same end points: ``make benchmark``.

The published algorithm walks one path at a time on the guides themselves, for 500 steps; the batched walk takes many
paths together and stops when they have settled; the latent walk asks the guides' students. Whatever they find is drawn
and judged by the same gate. The three take turns, block by block, so that whatever else the machine does meets all of
them alike.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm

from bundle.audit.resampling import DRAWS, Figure, bootstrap, figure, mean, patient_draws, share
from bundle.cohort.judge import synthesise
from bundle.data import ImageData
from bundle.figures import from_uint8
from bundle.figures.walks import save_walks
from bundle.files import write_json
from bundle.gate.gate import Gate
from bundle.latent.prior import LatentPrior
from bundle.metrics.copies import copy_threshold
from bundle.metrics.lpips import lpips_model, nearest
from bundle.metrics.recognition import predict
from bundle.networks.embeddings import ContrastiveEmbedding
from bundle.networks.latent_guides import LATENT_GUIDES
from bundle.networks.model_set import GENERATION_NETWORKS, ModelSet, load_models
from bundle.networks.sampling import sample_z
from bundle.networks.weights import load_weights
from bundle.walk.guides import Guides, ImageGuides, LatentGuides
from bundle.walk.inferer import PlanWalkInferer
from bundle.walk.objective import BalancedObjective, identity_divergence
from scripts.generation import BLOCK_POINTS, open_training_data, walk_guides

__all__ = ["ARMS", "Arm", "Judged", "Walker", "main", "table"]

# Cohorts over which the distillation is spread.
COHORTS = (100, 1000, 10_000)
# Pairs of end points that an arm takes in its turn.
TURN = 16


@dataclass(frozen=True)
class Arm:
    """A way to walk.

    Attributes:
        title: in the table.
        objective: see `bundle.walk.objective.OBJECTIVES`.
        guides: ``image`` or ``latent``.
        alone: walk one path at a time, not as many together as `generate` does.
        steps: most steps; None for as many as the objective is given.
    """

    title: str
    objective: str
    guides: str
    alone: bool = False
    steps: int | None = None


ARMS: dict[str, Arm] = {
    "linear": Arm("straight line", "balanced", "latent", steps=0),
    "published": Arm("published algorithm", "published", "image", alone=True),
    "image": Arm("batched, image space", "balanced", "image"),
    "latent": Arm("latent guides", "balanced", "latent"),
}


@dataclass
class Clock:
    """Seconds of wall and of CPU time, of all cores together."""

    wall: float = 0.0
    cpu: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Adds what passes within."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu


@dataclass
class Judged:
    """What an arm has walked, drawn and judged.

    Attributes:
        pairs: numbers of the paths, by class.
        w: their points [N, w_dim], by class.
        pixels: their images, uint8, by class.
        passed: what the gate let pass, [N], by class.
        steps: steps that each path took.
        walking: time of the walks.
        judging: time of synthesis and gate.
    """

    pairs: list[list[int]]
    w: list[list[Tensor]]
    pixels: list[list[Tensor]]
    passed: list[list[Tensor]]
    steps: list[int] = field(default_factory=list)
    walking: Clock = field(default_factory=Clock)
    judging: Clock = field(default_factory=Clock)


class Walker:
    """Walks, draws and judges by one arm.

    Args:
        models: networks.
        prior: of the generator's mapping network.
        gate: judges.
        arm: how to walk.
        n_points: points of a path.
        seed: of the end points.
    """

    def __init__(self, models: ModelSet, prior: LatentPrior, gate: Gate, arm: Arm, n_points: int, seed: int) -> None:
        self.models = models
        self.gate = gate
        self.arm = arm
        self.seed = seed
        self.guides: Guides = walk_guides(models, arm.guides, arm.objective)
        self.inferer = PlanWalkInferer(self.guides, prior, n_points, arm.objective)
        if arm.steps is not None:
            self.inferer.settings = dataclasses.replace(self.inferer.settings, steps=arm.steps)
        self.block = 1 if arm.alone else max(1, BLOCK_POINTS[arm.guides] // n_points)
        self.reset()

    def reset(self) -> None:
        """Forgets what has been walked."""
        classes = range(self.models.generator.num_classes)
        self.judged = Judged([[] for _ in classes], [[] for _ in classes], [[] for _ in classes], [[] for _ in classes])

    def walk(self, pairs: range, label: int) -> None:
        """Walks between the pairs of these numbers, block by block, and judges every point."""
        generator = self.models.generator
        for first in range(pairs.start, pairs.stop, self.block):
            block = range(first, min(first + self.block, pairs.stop))
            numbers = [(2 * pair + end) * generator.num_classes + label for pair in block for end in range(2)]
            z = sample_z(numbers, generator.z_dim, self.seed).view(len(block), 2, -1)
            with self.judged.walking.running():
                path = self.inferer(z, generator, torch.full((len(block),), label))
            self.judged.steps += [path["course"].shape[1]] * len(block)
            for pair, w in zip(block, path["w"], strict=True):
                with self.judged.judging.running():
                    pixels = synthesise(generator, w)
                    passed = self.gate(from_uint8(pixels), label).passed
                self.judged.pairs[label].append(pair)
                self.judged.w[label].append(w)
                self.judged.pixels[label].append(pixels)
                self.judged.passed[label].append(passed)


@dataclass(frozen=True)
class Judges:
    """What says how good walked points are.

    Attributes:
        guides: phi_id and phi_class themselves, in fp32.
        data: real images; None where there are none.
        trunk_file: of LPIPS.
        embedding: of the audit; None where there is none.
    """

    guides: ImageGuides
    data: ImageData | None
    trunk_file: str | None
    embedding: ContrastiveEmbedding | None


@torch.no_grad()
def quality(walker: Walker, judges: Judges, prior: LatentPrior) -> dict[str, Tensor]:
    """Judges an arm's inner points, each value a tensor [P, N - 2] of all paths, class by class.

    ``objective`` and ``pair``, the number of the path, are [P].
    """
    values: dict[str, list[Tensor]] = {}

    def add(name: str, value: Tensor) -> None:
        values.setdefault(name, []).append(value.float().cpu())

    reals = near = gallery = None
    threshold = 1.0
    if judges.data is not None:
        reals, near = judges.data.tensors(("train", "extra"))[0], lpips_model(judges.trunk_file)
    if judges.embedding is not None and judges.data is not None and reals is not None:
        gallery = predict(judges.embedding, reals)
        held_out = predict(judges.embedding, judges.data.tensors("val")[0])
        threshold = copy_threshold(judges.embedding.nearest(held_out, gallery)[0])
    for label, (paths, drawn, passed) in enumerate(
        zip(walker.judged.w, walker.judged.pixels, walker.judged.passed, strict=True)
    ):
        for w, pixels, through in zip(paths, drawn, passed, strict=True):
            labels = torch.tensor([label])
            images = from_uint8(pixels)[1:-1]
            identity, classes = judges.guides(w[1:-1])
            add("identity", identity_divergence(identity))
            add(
                "objective",
                BalancedObjective()(
                    w.unsqueeze(0), identity.unsqueeze(0), classes.unsqueeze(0), labels, prior(w[None, 1:-1], labels)
                )["loss"][0],
            )
            gate = walker.gate
            add("gate_identity", gate.gate_identity(images).softmax(dim=1).amax(dim=1))
            verdict = gate(images, label)
            add("recognised", verdict.recognised)
            add("labelled", ~verdict.mislabelled)
            add("passed", through[1:-1])
            if isinstance(walker.guides, LatentGuides):
                promised, promised_class = walker.guides(w[1:-1])
                likely = promised.softmax(dim=1).amax(dim=1) <= gate.threshold
                add("accepted", likely & (promised_class.argmax(dim=1) == label))
                add("promised", identity_divergence(promised))
            if near is not None and reals is not None:
                add("nearest", nearest(images, reals, near))
            if judges.embedding is not None and gallery is not None:
                add("copy", judges.embedding.nearest(predict(judges.embedding, images), gallery)[0] > threshold)
    classes = walker.models.generator.num_classes
    pairs = [pair * classes + label for label, numbers in enumerate(walker.judged.pairs) for pair in numbers]
    return {"pair": torch.tensor(pairs), **{name: torch.stack(parts) for name, parts in values.items()}}


#: Columns of the table of quality: name of the measure, title, and whether it is a share.
MEASURES: tuple[tuple[str, str, bool], ...] = (
    ("objective", "objective, real guides", False),
    ("identity", "identity KL, real phi_id", False),
    ("gate_identity", "gate_identity's highest probability", False),
    ("recognised", "recognised by the gate", True),
    ("labelled", "label kept, by the gate", True),
    ("passed", "released", True),
    ("nearest", "LPIPS to the nearest real image", False),
    ("copy", "copies, by the audit", True),
)


def path_figure(values: Tensor, is_share: bool) -> Figure:
    """Mean of values [P], or [P, n], with the interval of paths drawn anew."""
    paths = torch.arange(len(values)).repeat_interleave(values[0].numel())
    draws = patient_draws(paths, DRAWS, seed=0)
    flat = values.flatten()
    return share(flat.bool(), draws) if is_share else figure(mean(flat), bootstrap(flat, draws, mean), len(flat))


def difference(first: Tensor, second: Tensor) -> Figure:
    """Mean over paths of first less second, [P] or [P, n] of the same pairs, with its interval."""
    per_path = (first - second).flatten(1).mean(dim=1) if first.ndim > 1 else first - second
    return path_figure(per_path, is_share=False)


def peak_memory(arm: str, models_dir: str, n_points: int) -> float:
    """Most memory, in MiB, of a process that does nothing but load the networks and walk a block by an arm."""
    command = [sys.executable, "-m", "scripts.benchmark", "--memory_of", arm, "--models_dir", models_dir]
    command += ["--n_points", str(n_points)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def measure_memory(arm: str, models_dir: str, n_points: int) -> float:
    """Loads the networks, walks a block for three steps, draws and judges it; returns the most memory held, in MiB."""
    walker, _ = _walker(ARMS[arm], models_dir, n_points, seed=0)
    walker.inferer.settings = dataclasses.replace(walker.inferer.settings, steps=min(3, walker.inferer.settings.steps))
    walker.walk(range(walker.block), 0)
    status = Path("/proc/self/status")
    if status.exists():  # the kernel's other figure, getrusage's, begins with what the parent process held
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def _walker(arm: Arm, models_dir: str, n_points: int, seed: int) -> tuple[Walker, LatentPrior]:
    models = load_models(models_dir, names=(*GENERATION_NETWORKS, *(LATENT_GUIDES if arm.guides == "latent" else ())))
    prior = LatentPrior(models.generator)
    return Walker(models, prior, _gate(models), arm, n_points, seed), prior


def _gate(models: ModelSet) -> Gate:
    threshold = models.infos["gate_identity"]["scores"]["threshold"]
    return Gate(models.networks["gate_identity"], models.networks["gate_class"], threshold)


def cost_table(walkers: dict[str, Walker], memory: dict[str, float], distillation: float) -> list[tuple[str, ...]]:
    """Rows of what a released image costs by each arm; the first row names the columns."""
    judged = [walker.judged for walker in walkers.values()]
    points = sum(passed.numel() for one in judged for parts in one.passed for passed in parts)
    unit = sum(one.judging.cpu for one in judged) / points
    costs = {name: cost(walker.judged) for name, walker in walkers.items()}
    spread = [f"with distillation, over {n}" for n in COHORTS]
    rows = [("walk", "paths", "steps", "CPU s", "wall s", "units", "times cheaper", "peak MiB", *spread)]
    for name, walker in walkers.items():
        cpu, wall = costs[name]
        steps = walker.judged.steps
        extra = [cpu + distillation / n if name == "latent" else cpu for n in COHORTS]
        rows.append(
            (
                walker.arm.title,
                str(len(steps)),
                f"{sum(steps) / len(steps):.0f}",
                f"{cpu:.3g}",
                f"{wall:.3g}",
                f"{cpu / unit:.3g}",
                f"{costs['published'][0] / cpu:.0f}" if "published" in costs else "",
                f"{memory[name]:.0f}",
                *(f"{value:.3g}" for value in extra),
            )
        )
    return rows


def cost(judged: Judged) -> tuple[float, float]:
    """CPU and wall seconds for a released image: walk, synthesis and gate, of the points that did not pass as well."""
    released = sum(int(passed.sum()) for parts in judged.passed for passed in parts)
    if not released:
        return float("nan"), float("nan")
    return (
        (judged.walking.cpu + judged.judging.cpu) / released,
        (judged.walking.wall + judged.judging.wall) / released,
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Lays rows out as a table in Markdown; the first names the columns."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def _text(value: Figure, is_share: bool) -> str:
    factor, unit = (100.0, " %") if is_share else (1.0, "")
    return f"{factor * value.value:.3g}{unit} [{factor * value.low:.3g}, {factor * value.high:.3g}]"


def quality_table(measured: dict[str, dict[str, Tensor]], arms: dict[str, Arm]) -> list[tuple[str, ...]]:
    """Rows of how good the inner points of each arm are, and of the differences on the pairs that all arms walked."""
    chosen = [measure for measure in MEASURES if measure[0] in next(iter(measured.values()))]
    rows = [("walk", *(title for _, title, _ in chosen))]
    for name, values in measured.items():
        rows.append((arms[name].title, *(_text(path_figure(values[key], shared), shared) for key, _, shared in chosen)))
    first = "published"
    for name, values in measured.items():
        if name in ("linear", first):
            continue
        common = [index for index in measured[first]["pair"].tolist() if index in values["pair"].tolist()]
        places = [[values_["pair"].tolist().index(index) for index in common] for values_ in (values, measured[first])]
        row = [f"{arms[name].title} less {arms[first].title}, {len(common)} common pairs"]
        for key, _, shared in chosen:
            both = [part[key][place] for part, place in zip((values, measured[first]), places, strict=True)]
            row.append(_text(difference(both[0], both[1]), shared))
        rows.append(tuple(row))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints.

    Args:
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmark", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--models_dir", default="models/xray", help="the networks (%(default)s)")
    parser.add_argument("--dataset_dir", default="", help="real images: adds distances to them, and copies")
    parser.add_argument("--trunk_file", default=None, help="of LPIPS; left out, torchvision downloads it")
    parser.add_argument("--pairs", type=int, default=16, help="paths of each class (%(default)s)")
    parser.add_argument(
        "--baseline_pairs", type=int, default=2, help="the same of the published algorithm (%(default)s)"
    )
    parser.add_argument("--n_points", type=int, default=10, help="of a path, ends included (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the end points (%(default)s)")
    parser.add_argument("--output_file", default="output/benchmark.json", help="gets the figures (%(default)s)")
    parser.add_argument("--picture", help="gets a picture of costs and paths (left out, it lies beside output_file)")
    parser.add_argument("--memory_of", choices=tuple(ARMS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for name, least in (("pairs", 1), ("baseline_pairs", 1), ("n_points", 3), ("seed", 0)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, not {getattr(options, name)}.")
    if options.memory_of:
        print(measure_memory(options.memory_of, options.models_dir, options.n_points))
        return
    run(options)


def run(options: argparse.Namespace) -> None:
    """Walks by every arm, block by block in turn, and prints both tables."""
    latent, prior = _walker(ARMS["latent"], options.models_dir, options.n_points, options.seed)
    models = latent.models
    walkers = {
        name: latent if name == "latent" else Walker(models, prior, latent.gate, arm, options.n_points, options.seed)
        for name, arm in ARMS.items()
    }
    for walker in walkers.values():  # what is computed for the first time takes longer
        _warm_up(walker)
    wanted = dict.fromkeys(ARMS, options.pairs) | {"published": min(options.baseline_pairs, options.pairs)}
    turns = [
        (name, label, range(first, min(first + TURN, number)))
        for first in range(0, options.pairs, TURN)
        for label in range(models.generator.num_classes)
        for name, number in wanted.items()
        if first < number
    ]
    for name, label, pairs in tqdm(turns, desc="walking", unit="block"):
        walkers[name].walk(pairs, label)
    networks = models.networks
    guides = ImageGuides(models.generator, networks["identity_guide"], networks["class_guide"], amp=False)
    data = open_training_data(options.dataset_dir, options.models_dir, str(Path(options.output_file).parent), models)
    embedding = None
    if data is not None and (Path(options.models_dir) / "audit_embedding.json").exists():
        network, _ = load_weights(Path(options.models_dir) / "audit_embedding.pt")
        assert isinstance(network, ContrastiveEmbedding)
        embedding = network
    judges = Judges(guides, data, options.trunk_file, embedding)
    measured = {name: quality(walker, judges, prior) for name, walker in walkers.items()}
    memory = {name: peak_memory(name, options.models_dir, options.n_points) for name in ARMS}
    costs = cost_table(walkers, memory, models.infos["latent_identity"]["cpu_seconds"])
    qualities = quality_table(measured, ARMS)
    students = student_figures(measured["latent"], models.infos["latent_identity"]["scores"]["walks"])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    head = (
        f"{models.generator.arguments['resolution']} px, {options.n_points} points a path, seed {options.seed}; "
        f"{platform.machine()}, {cores} cores, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, "
        f"{torch.backends.cpu.get_cpu_capability()}"
    )
    print(f"\n{head}\n\nFor a released image:\n{table(costs)}\n\nInner points:\n{table(qualities)}\n\n{students}")
    write_json(options.output_file, {"head": head, "cost": costs, "quality": qualities, "students": students})
    units = costs[0].index("units")
    arms = [
        (row[0], float(row[units]), measured[name]["identity"], from_uint8(walkers[name].judged.pixels[-1][0]))
        for name, row in zip(walkers, costs[1:], strict=True)
    ]
    save_walks(arms, options.picture or Path(options.output_file).with_suffix(".png"))


def student_figures(latent: dict[str, Tensor], trial: dict[str, float]) -> str:
    """Says in words how far the students can be trusted."""
    accepted = latent["accepted"].bool()
    draws = patient_draws(
        torch.arange(len(accepted)).repeat_interleave(accepted.shape[1])[accepted.flatten()], DRAWS, 0
    )
    passed = share(latent["passed"].bool().flatten()[accepted.flatten()], draws)
    correlation = spearmanr(latent["identity"].flatten(), latent["promised"].flatten()).statistic
    return (
        f"Of {int(accepted.sum())} inner points that the students accept, {_text(passed, True)} pass the gate. Where "
        f"the walks end, the students promise an identity KL of {float(latent['promised'].mean()):.3g} and the guide "
        f"says {float(latent['identity'].mean()):.3g} (rank correlation {correlation:.2f}); over whole trajectories "
        f"the rank correlation is {trial['rank_correlation']:.2f}, by the weights' JSON."
    )


def _warm_up(walker: Walker) -> None:
    settings = walker.inferer.settings
    walker.inferer.settings = dataclasses.replace(settings, steps=min(2, settings.steps))
    for label in range(walker.models.generator.num_classes):
        walker.walk(range(walker.block), label)
    walker.inferer.settings = settings
    walker.reset()


if __name__ == "__main__":
    main()
