# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Measures the speed of the GAN's training with and without its optimisations.

Each figure covers a whole training iteration: forward and backward pass and optimiser step of both networks,
augmentation at p = 0.3, and R1 in proportion to its interval. Variants take turns round by round, so that other load of
the machine affects them equally.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from ignite.engine import Events
from monai.data import Dataset

from bundle.markup import markdown_table
from bundle.networks.projected import ProjectedDiscriminator
from bundle.networks.stylegan2 import Discriminator, Generator
from bundle.networks.stylegan2.grouped import with_grouped_convolutions
from bundle.training.augment import AdaptiveAugment
from bundle.training.stylegan2_trainer import StyleGAN2Trainer, balanced_loader, default_r1_gamma

__all__ = ["Speed", "Variant", "measure", "table"]

# R1 interval of the shipped configuration, in iterations.
R1_INTERVAL = 16
PLAIN_ITERATIONS = 2
CLASSES = 2


def _as_it_is(generator: Generator) -> Generator:
    return generator


@dataclass(frozen=True)
class Variant:
    """A configuration of the training to compare.

    Attributes:
        name: name in the table.
        amp: whether to compute in bf16 on devices that support it.
        prepare: function that modifies the generator.
        projected: whether to use the projected discriminator and the variety loss, without R1.
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
    """Time per image in one round of one variant.

    Attributes:
        wall: wall-clock seconds per image.
        cpu: CPU seconds per image, summed over all cores.
    """

    wall: float
    cpu: float


class Stopwatch:
    """Times single iterations of an engine.

    Args:
        trainer: trainer with an R1 interval of ``PLAIN_ITERATIONS`` + 1, so that one iteration per epoch evaluates R1.
        batch_size: images per batch.
    """

    def __init__(self, trainer: StyleGAN2Trainer, batch_size: int) -> None:
        self.trainer = trainer
        self.batch_size = batch_size
        self.times: list[Speed] = []
        trainer.add_event_handler(Events.ITERATION_STARTED, self._start)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._stop)

    def round(self) -> Speed:
        """Trains an epoch and averages its iterations, with those with R1 weighted by the shipped interval."""
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
    """Trains every variant for one epoch per round, after a warm-up round.

    Args:
        resolution: side of the images in pixels.
        batch_size: images per batch.
        rounds: number of measured rounds.
        variants: variants to compare.

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
    """Formats medians with minimum and maximum in brackets, and the speed-up of the first variant (median over rounds).

    Args:
        speeds: result of `measure`.

    Returns:
        A Markdown table.
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
    return markdown_table(rows)


def _spread(values: Iterable[float]) -> str:
    ordered = sorted(values)
    return f"{statistics.median(ordered):.1f} ({ordered[0]:.1f}-{ordered[-1]:.1f})"
