# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""How fast the GAN trains, beside what it would do without the measures taken for speed: ``make benchmark_training``.

A figure is that of a whole training iteration: forward, backward and step of both networks, augmentation at p = 0.3,
and R1 in the share that its interval gives it. Variants take turns, round by round, so that whatever else the machine
does meets all of them alike.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from ignite.engine import Events
from monai.data import Dataset
from torch import Tensor, nn

from bundle.networks.projected import ProjectedDiscriminator
from bundle.networks.stylegan2 import RESOLUTIONS, Discriminator, Generator, ModulatedConv2d
from bundle.training.augment import AdaptiveAugment
from bundle.training.stylegan2_trainer import StyleGAN2Trainer, balanced_loader, default_r1_gamma

__all__ = ["GroupedModulatedConv2d", "Speed", "main", "measure", "table"]

# Of the shipped configuration: one iteration in so many evaluates R1.
R1_INTERVAL = 16
PLAIN_ITERATIONS = 2
CLASSES = 2


class GroupedModulatedConv2d(ModulatedConv2d):
    """`ModulatedConv2d` as the paper writes it: one set of weights for each sample, applied as groups."""

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """See `ModulatedConv2d.forward`."""
        batch, channels, height, width = x.shape
        weight = self.weight * self.weight_gain * style.to(self.weight.dtype).view(batch, 1, channels, 1, 1)
        if self.demodulate:
            weight = weight * (weight.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        weight = weight.to(x.dtype)
        x = x.reshape(1, batch * channels, height, width)
        if self.up:
            x = F.conv_transpose2d(x, weight.transpose(1, 2).flatten(0, 1), stride=2, groups=batch)
        else:
            x = F.conv2d(x, weight.flatten(0, 1), padding=self.padding, groups=batch)
        x = x.view(batch, -1, *x.shape[2:])
        if not self.up:
            return x
        kernel = (self.kernel * 4.0).to(x.dtype).expand(x.shape[1], 1, 4, 4)
        return F.conv2d(x, kernel, padding=1, groups=x.shape[1])


def with_grouped_convolutions(generator: Generator) -> Generator:
    """Gives a generator `GroupedModulatedConv2d` in place of its modulated convolutions, in place."""
    for module in generator.modules():
        for name, child in module.named_children():
            if isinstance(child, ModulatedConv2d):
                out_channels, in_channels, size, _ = child.weight.shape
                grouped = GroupedModulatedConv2d(in_channels, out_channels, size, child.up, child.demodulate)
                grouped.load_state_dict(child.state_dict())
                setattr(module, name, grouped)
    return generator


def _as_it_is(generator: Generator) -> Generator:
    return generator


@dataclass(frozen=True)
class Variant:
    """A way to train.

    Attributes:
        name: in the table.
        amp: bf16 on devices that compute in it.
        prepare: changes the generator.
        projected: with the projected discriminator and the loss on variety, without R1.
    """

    name: str
    amp: bool = True
    prepare: Callable[[Generator], Generator] = _as_it_is
    projected: bool = False


VARIANTS = (
    Variant("residual discriminator (bf16, modulated activations)"),
    Variant("the same in fp32", amp=False),
    Variant("the same with grouped convolutions", prepare=with_grouped_convolutions),
    Variant("projected discriminator and loss on variety", projected=True),
)


@dataclass(frozen=True)
class Speed:
    """What one round of one variant took.

    Attributes:
        wall: seconds for an image.
        cpu: seconds for an image, of all cores together.
    """

    wall: float
    cpu: float


class Stopwatch:
    """Times single iterations of an engine.

    Args:
        trainer: with an R1 interval of ``PLAIN_ITERATIONS`` + 1, so that an epoch has one iteration with R1.
        batch_size: images in an iteration.
    """

    def __init__(self, trainer: StyleGAN2Trainer, batch_size: int) -> None:
        self.trainer = trainer
        self.batch_size = batch_size
        self.times: list[Speed] = []
        trainer.add_event_handler(Events.ITERATION_STARTED, self._start)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._stop)

    def round(self) -> Speed:
        """Trains an epoch and weighs its iterations as the shipped R1 interval does."""
        self.times.clear()
        self.trainer.state.max_epochs += 1
        self.trainer.run()
        with_r1, *plain = self.times
        share = 1.0 / R1_INTERVAL
        return Speed(
            wall=share * with_r1.wall + (1 - share) * statistics.fmean(speed.wall for speed in plain),
            cpu=share * with_r1.cpu + (1 - share) * statistics.fmean(speed.cpu for speed in plain),
        )

    def _start(self) -> None:
        self._started = Speed(time.perf_counter(), time.process_time())

    def _stop(self) -> None:
        wall = time.perf_counter() - self._started.wall
        cpu = time.process_time() - self._started.cpu
        self.times.append(Speed(wall / self.batch_size, cpu / self.batch_size))


def _trainer(variant: Variant, resolution: int, batch_size: int) -> StyleGAN2Trainer:
    torch.manual_seed(0)
    images = torch.rand(4 * batch_size, 1, resolution, resolution) * 2 - 1
    data = Dataset([{"image": image, "label": index % CLASSES, "split": "train"} for index, image in enumerate(images)])
    return StyleGAN2Trainer(
        device="cpu",
        max_epochs=0,
        epoch_length=PLAIN_ITERATIONS + 1,
        train_data_loader=balanced_loader(data, batch_size, seed=0),
        generator=variant.prepare(Generator(resolution, num_classes=CLASSES)),
        discriminator=ProjectedDiscriminator(1, CLASSES)
        if variant.projected
        else Discriminator(resolution, 1, CLASSES),
        augment=AdaptiveAugment(p=0.3, target=None),
        r1_interval=PLAIN_ITERATIONS + 1,
        amp=variant.amp,
        r1_gamma=0.0 if variant.projected else default_r1_gamma(resolution, batch_size),
        variety=4.0 if variant.projected else 0.0,
    )


def measure(
    resolution: int, batch_size: int, rounds: int, variants: Sequence[Variant] = VARIANTS
) -> dict[str, list[Speed]]:
    """Trains every variant for an epoch in each round, after one to warm up.

    Args:
        resolution: side of the images in pixels.
        batch_size: images in an iteration.
        rounds: how many count.
        variants: what is compared.

    Returns:
        The rounds of each variant, by name.
    """
    watches = {variant.name: Stopwatch(_trainer(variant, resolution, batch_size), batch_size) for variant in variants}
    speeds: dict[str, list[Speed]] = {name: [] for name in watches}
    for number in range(rounds + 1):
        for name, watch in watches.items():
            speed = watch.round()
            if number > 0:
                speeds[name].append(speed)
    return speeds


def table(speeds: dict[str, list[Speed]]) -> str:
    """Sets medians, and least and most in brackets, beside how the first variant compares (median over rounds).

    Args:
        speeds: as `measure` returns them.

    Returns:
        Lines of plain text.
    """
    first = next(iter(speeds.values()))
    rows = [("variant", "images/s", "CPU-ms/image", "speed-up of the first", "in CPU time")]
    for name, rounds in speeds.items():
        rows.append(
            (
                name,
                _spread([1.0 / speed.wall for speed in rounds]),
                _spread([1000.0 * speed.cpu for speed in rounds]),
                f"{statistics.median(b.wall / a.wall for a, b in zip(first, rounds, strict=True)):.2f}",
                f"{statistics.median(b.cpu / a.cpu for a, b in zip(first, rounds, strict=True)):.2f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _spread(values: Iterable[float]) -> str:
    ordered = sorted(values)
    return f"{statistics.median(ordered):.1f} ({ordered[0]:.1f}-{ordered[-1]:.1f})"


def _parameters(network: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.2f} M"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints.

    Args:
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(
        prog="python -m scripts.tools.benchmark_training", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=5, help="times that each variant has its turn (%(default)s)")
    parser.add_argument("--resolution", type=int, default=64, choices=RESOLUTIONS, help="in pixels (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=32, help="images in an iteration (%(default)s)")
    options = parser.parse_args(arguments)
    for name in ("rounds", "batch_size"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, not {getattr(options, name)}.")

    speeds = measure(options.resolution, options.batch_size, options.rounds)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    generator, discriminator = Generator(options.resolution), Discriminator(options.resolution)
    print(
        f"{options.resolution} px, batches of {options.batch_size}, {options.rounds} rounds: median (least-most)\n"
        f"generator {_parameters(generator)}, discriminator {_parameters(discriminator)} parameters\n"
        f"{platform.machine()}, {cores} cores, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, "
        f"{torch.backends.cpu.get_cpu_capability()}\n"
    )
    print(table(speeds))


if __name__ == "__main__":
    main()
