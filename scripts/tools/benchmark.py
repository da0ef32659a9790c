# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Compares the cost and quality of released images between three walks of the same end points: ``make benchmark``.

The published algorithm walks one path at a time on the guides themselves, for 500 steps; the batched walk optimises
many paths together and stops when they have converged; the latent walk uses the guides' students. Images of all three
are synthesised and evaluated by the same gate. The walks take turns block by block, so that other load of the machine
affects them equally.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from bundle.allocator import keep_freed_memory
from bundle.cohort.settings import generation_networks
from bundle.command_line import plain_errors
from bundle.data import get_modality
from bundle.evaluation.walk_costs import WALKS, compared_walks, cost_table, shortened
from bundle.evaluation.walk_quality import ReferenceImages, quality, quality_table, student_table
from bundle.evaluation.walkers import Walker
from bundle.figures import from_uint8
from bundle.figures.walks import save_walks
from bundle.files import write_json
from bundle.gate.gate import open_gate
from bundle.latent.prior import LatentPrior
from bundle.markup import markdown_table
from bundle.networks.embeddings import ContrastiveEmbedding
from bundle.networks.model_set import load_models
from bundle.networks.training_data import open_training_data
from bundle.networks.weights import load_weights
from bundle.training.seeds import stream_seed
from bundle.walk.distillation import TRIAL
from bundle.walk.guides import ImageGuides, kappa_of
from bundle.walk.inferer import PlanWalkInferer
from bundle.walk.objective import BalancedObjective
from bundle.walk.trajectories import agreement
from scripts.tools import machine

__all__ = ["main", "measure_memory", "peak_memory"]

# Pairs of end points per turn of a walk.
TURN = 16
# Number of seeds for the comparison of students and guides.
TRIALS = 5
# Weights of the objective that a modality may set, as in `generate`.
WEIGHTS = ("lambda_class", "lambda_prior", "lambda_real")


def peak_memory(walk: str, models_dir: str, n_points: int) -> float:
    """Returns the peak memory, in MiB, of a process that only loads the networks and walks one block."""
    command = [sys.executable, "-m", "scripts.tools.benchmark", "--memory_of", walk, "--models_dir", models_dir]
    command += ["--n_points", str(n_points)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def measure_memory(walk: str, models_dir: str, n_points: int) -> float:
    """Loads the networks, walks a block for three steps, synthesises and judges it; returns the peak memory in MiB."""
    way = shortened(compared_walks(BalancedObjective())[walk], 3)
    models = load_models(models_dir, names=generation_networks(way.guides))
    walker = Walker(models, LatentPrior(models.generator), open_gate(models), way, n_points, seed=0)
    walker.walk(range(walker.block), 0)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's estimate includes what the parent process held
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark and prints the results.

    Args:
        arguments: command-line arguments; None for those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m scripts.tools.benchmark", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--models_dir", default="models/xray", help="the networks (%(default)s)")
    parser.add_argument("--dataset_dir", nargs="+", help="real images: adds distances to them, and copies")
    parser.add_argument("--squeezenet_file", default=None, help="of LPIPS; left out, torchvision downloads it")
    parser.add_argument("--pairs", type=int, default=16, help="paths of each class (%(default)s)")
    parser.add_argument(
        "--baseline_pairs", type=int, default=2, help="the same of the published algorithm (%(default)s)"
    )
    parser.add_argument("--n_points", type=int, default=10, help="of a path, ends included (%(default)s)")
    for name in WEIGHTS:
        parser.add_argument(f"--{name}", type=float, help="as in generate (the modality's)")
    parser.add_argument("--seed", type=int, default=0, help="of the end points (%(default)s)")
    parser.add_argument("--output_file", default="output/benchmark.json", help="gets the figures (%(default)s)")
    parser.add_argument("--picture", help="gets a picture of costs and paths (left out, it lies beside output_file)")
    parser.add_argument("--memory_of", choices=WALKS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    least_values = {"pairs": 1, "baseline_pairs": 1, "n_points": 3, "seed": 0, **dict.fromkeys(WEIGHTS, 0)}
    for name, least in least_values.items():
        if getattr(options, name) is not None and getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, not {getattr(options, name)}.")
    keep_freed_memory()  # as `generate` does
    if options.memory_of:
        print(measure_memory(options.memory_of, options.models_dir, options.n_points))
        return
    with plain_errors():
        run(options)


def run(options: argparse.Namespace) -> None:
    """Runs all walks, block by block in turn, and prints the tables of costs and quality."""
    models = load_models(options.models_dir, names=generation_networks("latent"))
    given = {name: getattr(options, name) for name in WEIGHTS if getattr(options, name) is not None}
    modality = get_modality(models.infos["generator"]["modality"])
    weights = {name: given.get(name, getattr(modality, name)) for name in WEIGHTS}
    objective = BalancedObjective(**weights, kappa=kappa_of(models))
    prior, gate = LatentPrior(models.generator), open_gate(models)
    walks = compared_walks(objective)
    walkers = {name: Walker(models, prior, gate, walk, options.n_points, options.seed) for name, walk in walks.items()}
    # Opened first so that wrong options are reported before the walks.
    data = open_training_data(options.dataset_dir, options.models_dir, str(Path(options.output_file).parent), models)
    embedding = None
    if data is not None and (Path(options.models_dir) / "audit_embedding.json").exists():
        network, _ = load_weights(Path(options.models_dir) / "audit_embedding.pt")
        assert isinstance(network, ContrastiveEmbedding)
        embedding = network
    real_images = None if data is None else ReferenceImages(data, options.squeezenet_file, embedding)
    latent = walkers["latent"]
    for walk in walks.values():  # warm-up: first computations are slower
        warmed = Walker(models, prior, gate, shortened(walk, 2), options.n_points, options.seed)
        for label in range(models.generator.num_classes):
            warmed.walk(range(warmed.block), label)
    wanted = dict.fromkeys(WALKS, options.pairs) | {"published": min(options.baseline_pairs, options.pairs)}
    turns = [
        (name, label, range(first, min(first + TURN, number)))
        for first in range(0, options.pairs, TURN)
        for label in range(models.generator.num_classes)
        for name, number in wanted.items()
        if first < number
    ]
    for name, label, pairs in tqdm(turns, desc="walking", unit="block"):
        walkers[name].walk(pairs, label)
    memory = {name: peak_memory(name, options.models_dir, options.n_points) for name in WALKS}
    costs = cost_table(walkers, memory, models.infos["latent_identity"]["cpu_seconds"])
    resolution = models.generator.arguments["resolution"]
    head = f"{resolution} px, {options.n_points} points a path, seed {options.seed}; {machine()}"
    print(f"\n{head}\n\nFor a released image:\n{markdown_table(costs)}", flush=True)
    networks = models.networks
    guides = ImageGuides(
        models.generator, networks["identity_guide"], networks["class_guide"], networks["realism_guide"], amp=False
    )
    measured = {name: quality(walker, guides, prior, objective, real_images) for name, walker in walkers.items()}
    qualities = quality_table(measured, walks)
    print(f"\nInner points:\n{markdown_table(qualities)}", flush=True)
    new_walk = partial(PlanWalkInferer, prior=prior, objective=objective, settings=latent.way.settings)
    seeds = tqdm(range(options.seed, options.seed + TRIALS), desc="comparing students and guides", unit="seed")
    students = student_table(
        measured["latent"],
        [agreement(new_walk, latent.guides, models, stream_seed(seed, TRIAL)) for seed in seeds],
    )
    print(f"\n{students}")
    write_json(options.output_file, {"head": head, "cost": costs, "quality": qualities, "students": students})
    units = costs[0].index("units")
    arms = [
        (row[0], float(row[units]), measured[name]["identity"], from_uint8(walkers[name].judged.pixels[-1][0]))
        for name, row in zip(walkers, costs[1:], strict=True)
    ]
    save_walks(arms, options.picture or Path(options.output_file).with_suffix(".png"))


if __name__ == "__main__":
    main()
