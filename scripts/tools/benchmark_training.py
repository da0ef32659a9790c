# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Compares the speed of the GAN's training with and without its optimisations: ``make benchmark_training``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from torch import nn

from bundle.networks.stylegan2 import RESOLUTIONS, Discriminator, Generator
from bundle.training.speed import measure, table
from scripts.tools import machine

__all__ = ["main"]


def _parameters(network: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.2f} M"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark and prints the results.

    Args:
        arguments: command-line arguments; None for those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m scripts.tools.benchmark_training", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="times that each variant has its turn (%(default)s)")
    parser.add_argument("--resolution", type=int, default=64, choices=RESOLUTIONS, help="in pixels (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=32, help="images in an iteration (%(default)s)")
    options = parser.parse_args(arguments)
    for name in ("rounds", "batch_size"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, not {getattr(options, name)}.")

    speeds = measure(options.resolution, options.batch_size, options.rounds)
    generator, discriminator = Generator(options.resolution), Discriminator(options.resolution)
    print(
        f"{options.resolution} px, batches of {options.batch_size}, {options.rounds} rounds: median (least-most)\n"
        f"generator {_parameters(generator)}, discriminator {_parameters(discriminator)} parameters\n"
        f"{machine()}\n"
    )
    print(table(speeds))


if __name__ == "__main__":
    main()
