# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""StyleGAN2-ADA training as a MONAI engine.

Sources: Karras et al., CVPR 2020 (StyleGAN2) and NeurIPS 2020 (ADA). Style mixing and path length regularisation are
left out: at this size and with hundreds of images they cost time and help nothing (ADA, appendix D, drops the mixing).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from monai.engines import Trainer
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from bundle.networks.projected import STAGES, ProjectedDiscriminator
from bundle.networks.stylegan2 import Discriminator, Generator
from bundle.precision import bf16_autocast
from bundle.training.augment import AdaptiveAugment
from bundle.training.gradients import require_finite_gradients
from bundle.training.losses import discriminator_loss, generator_loss, lazy_adam, r1_penalty
from bundle.training.memory import tell_of_memory
from bundle.training.seeds import stream_seed
from bundle.training.variety import VarietyLoss

__all__ = ["BalancedBatchSampler", "StyleGAN2Trainer", "balanced_loader", "default_r1_gamma", "prepare_gan_batch"]

# Streams of random numbers that each iteration has of its own.
DATA, STEP = 0, 1


def default_r1_gamma(resolution: int, batch_size: int) -> float:
    """The heuristic weight of R1, 0.0002 resolution^2 / batch size (Karras et al., NeurIPS 2020, appendix C)."""
    return 0.0002 * resolution**2 / batch_size


def prepare_gan_batch(
    batch: dict[str, Any], device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Takes images [B, C, H, W] in [-1, 1] and labels [B] out of a batch, as plain tensors on the device."""
    images = torch.as_tensor(batch["image"]).to(device, torch.float32, non_blocking=non_blocking)
    labels = torch.as_tensor(batch["label"]).to(device, torch.int64, non_blocking=non_blocking)
    return images, labels


class BalancedBatchSampler(Sampler[list[int]]):
    """Endless batches, each with every class in equal number, that depend on the seed and their own number alone.

    Args:
        labels: class of each image of the dataset.
        batch_size: images in a batch.
        seed: of the draws.
        splits: split of each image. Within a class all splits are drawn from equally often: a few hundred further
            images of another camera do not make that camera a mark of the class. None: all images are of one.

    Attributes:
        start: number of the first batch, from 0: a resumed run sets it.

    Raises:
        ValueError: there are no images.
    """

    def __init__(self, labels: Sequence[int], batch_size: int, seed: int, splits: Sequence[str] | None = None) -> None:
        if not labels:
            raise ValueError("There is no image to draw batches from. Check the split of the dataset.")
        pools: dict[int, dict[str, list[int]]] = {}
        for i, label in enumerate(labels):
            pools.setdefault(label, {}).setdefault(splits[i] if splits else "", []).append(i)
        self.pools = [[pools[label][split] for split in sorted(pools[label])] for label in sorted(pools)]
        self.batch_size = batch_size
        self.seed = seed
        self.start = 0

    def __iter__(self) -> Iterator[list[int]]:
        number = self.start
        while True:
            random = torch.Generator().manual_seed(stream_seed(self.seed, DATA, number))
            turn = self._draw(len(self.pools), random)
            batch = []
            for i in range(self.batch_size):
                pools = self.pools[(turn + i) % len(self.pools)]
                members = pools[self._draw(len(pools), random)]
                batch.append(members[self._draw(len(members), random)])
            yield batch
            number += 1

    @staticmethod
    def _draw(n: int, random: torch.Generator) -> int:
        return int(torch.randint(n, (), generator=random)) if n > 1 else 0


def balanced_loader(dataset: Dataset[dict[str, Any]], batch_size: int, seed: int) -> DataLoader[dict[str, Any]]:
    """Builds the endless loader that `StyleGAN2Trainer` trains from, on a `BalancedBatchSampler`.

    Args:
        dataset: dictionaries with ``image`` [C, H, W] in [-1, 1], ``label`` and ``split``, held in memory.
        batch_size: images in a batch.
        seed: of the draws.
    """
    items = [dataset[i] for i in range(len(dataset))]  # type: ignore[arg-type]
    labels, splits = [int(item["label"]) for item in items], [item["split"] for item in items]
    return DataLoader(dataset, batch_sampler=BalancedBatchSampler(labels, batch_size, seed, splits))


class StyleGAN2Trainer(Trainer):
    """Trains a conditional StyleGAN2 with the non-saturating loss, lazy R1, ADA and an average of the generator.

    An iteration draws all its random numbers from a stream that its own number seeds: a run that goes on from
    `state_dict` is bit for bit the run that was never stopped.

    The output of an iteration holds ``reals`` and ``fakes`` [B, C, H, W], ``latents`` [B, z_dim], the scalars
    ``g_loss``, ``d_loss`` and ``loss`` (their sum), ``p`` (augmentation), ``r_t`` (mean sign of the logits) and
    ``variety`` (`VarietyLoss.share`; 1 where that loss is off).

    Args:
        device: where to train.
        max_epochs: epochs, of ``epoch_length`` iterations each.
        train_data_loader: gives batches for ``prepare_batch``, by a `BalancedBatchSampler`; see `balanced_loader`.
        epoch_length: iterations in an epoch.
        generator: trained in place.
        discriminator: trained in place.
        augment: what the discriminator sees images through.
        learning_rate: of the generator.
        discriminator_learning_rate: None takes the generator's.
        r1_gamma: weight of R1; 0 leaves it out.
        r1_interval: iterations between two evaluations of R1.
        variety: weight of `VarietyLoss` in the generator's loss, in the features that a `ProjectedDiscriminator` has;
            0 leaves it out.
        ema_kimg: half-life of the generator's average, in thousands of images.
        ema_rampup: the half-life is at most this share of the images seen so far; keeps a start from random weights out
            of the average. None for a start from trained ones.
        seed: of all draws.
        inferer: calls the discriminator, ``inferer(images, discriminator, label)``.
        prepare_batch: turns a batch into images and labels on the device.
        train_handlers: Ignite handlers.
        amp: bf16 on devices that compute in it, R1 excepted.

    Raises:
        TypeError: the loader draws its batches otherwise, so that the run could not be resumed; or variety is asked for
            and the discriminator has no frozen features.
        TooLittleMemory: by `run`.
        DivergedError: by `run`, in the iteration in which a gradient is no longer finite.
    """

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: DataLoader[dict[str, Any]],
        epoch_length: int,
        generator: Generator,
        discriminator: Discriminator | ProjectedDiscriminator,
        augment: AdaptiveAugment,
        learning_rate: float = 0.0025,
        discriminator_learning_rate: float | None = None,
        r1_gamma: float = 0.0256,
        r1_interval: int = 16,
        variety: float = 0.0,
        ema_kimg: float = 10.0,
        ema_rampup: float | None = 0.05,
        seed: int = 0,
        inferer: Inferer | None = None,
        prepare_batch: Callable[..., tuple[Tensor, Tensor]] = prepare_gan_batch,
        train_handlers: Sequence[Any] | None = None,
        amp: bool = True,
    ) -> None:
        if not isinstance(train_data_loader.batch_sampler, BalancedBatchSampler):
            raise TypeError("train_data_loader must draw by a BalancedBatchSampler. Build it with balanced_loader.")
        if variety > 0.0 and not isinstance(discriminator, ProjectedDiscriminator):
            raise TypeError("variety is measured in the features of a ProjectedDiscriminator. Take one, or variety 0.")
        self.sampler = train_data_loader.batch_sampler
        # amp=False for MONAI: its switch makes a CUDA gradient scaler, which bf16 does not need.
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            epoch_length=epoch_length,
            prepare_batch=prepare_batch,
            handlers=train_handlers,
            amp=False,
            decollate=False,
        )
        place = self.state.device
        self.generator = generator.to(memory_format=torch.channels_last).to(place).requires_grad_(True).train()
        self.discriminator = discriminator.to(memory_format=torch.channels_last).to(place).requires_grad_(True).train()
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.augment = augment.to(place)
        self.variety_loss = VarietyLoss(len(STAGES), generator.num_classes).to(place)
        self.generator_optimizer = lazy_adam(list(generator.parameters()), learning_rate, (0.0, 0.99))
        self.discriminator_optimizer = lazy_adam(
            list(discriminator.parameters()),
            learning_rate if discriminator_learning_rate is None else discriminator_learning_rate,
            (0.0, 0.99),
            r1_interval if r1_gamma > 0.0 else None,
        )
        self.r1_gamma = r1_gamma
        self.r1_interval = r1_interval
        self.variety = variety
        self.ema_kimg = ema_kimg
        self.ema_rampup = ema_rampup
        self.seed = seed
        self.inferer = SimpleInferer() if inferer is None else inferer
        self.bf16 = amp
        self.images_seen = 0

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done."""
        return bool(self.state.iteration >= self.state.max_epochs * self.state.epoch_length)

    def run(self) -> None:  # type: ignore[override]
        """Trains to the last epoch, from wherever the state stands."""
        if not self.is_finished:  # Ignite would take a finished engine for a new one and start over
            with tell_of_memory("the GAN"):
                super().run()

    def training_state(self) -> dict[str, Any]:
        """All that a run needs to go on bit for bit; tensors and plain values only."""
        return {
            "iteration": self.state.iteration,
            "images_seen": self.images_seen,
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "average": self.average.state_dict(),
            "augment": self.augment.state_dict(),
            "variety_loss": self.variety_loss.state_dict(),
            "generator_optimizer": self.generator_optimizer.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Takes over what `training_state` returned."""
        for name in ("generator", "discriminator", "average", "augment", "variety_loss"):
            getattr(self, name).load_state_dict(state[name], strict=True)
        for name in ("generator_optimizer", "discriminator_optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.images_seen = state["images_seen"]
        self.state.iteration = state["iteration"]
        self.state.epoch = state["iteration"] // self.state.epoch_length
        self.sampler.start = state["iteration"]

    def _autocast(self) -> torch.autocast:
        return bf16_autocast(self.state.device, self.bf16)

    def _generate(self, label: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.randn(label.shape[0], self.generator.z_dim, device=label.device)
        return self.generator.synthesis.unclamped(self.generator.mapping(z, label), "random"), z

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> dict[str, Any]:
        number = self.state.iteration  # Ignite counts from 1 by now
        torch.manual_seed(stream_seed(self.seed, STEP, number))
        reals, label = self.prepare_batch(batchdata, self.state.device, self.non_blocking, **self.to_kwargs)
        reals = reals.contiguous(memory_format=torch.channels_last)

        # One batch of fakes serves both networks' steps: a forward pass less than drawing twice.
        with self._autocast():
            fakes, latents = self._generate(label)
        d_loss = self._train_discriminator(reals, fakes.detach(), label, number)
        g_loss = self._train_generator(fakes, reals, label, number)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)

        self.images_seen += reals.shape[0]
        self._update_average(reals.shape[0])
        return {
            "reals": reals,
            "fakes": fakes.detach(),
            "latents": latents,
            "g_loss": g_loss,
            "d_loss": d_loss,
            "loss": g_loss + d_loss,
            "p": float(self.augment.p),
            "r_t": self._r_t,
            "variety": self.variety_loss.share,
        }

    def _train_discriminator(self, reals: Tensor, fakes: Tensor, label: Tensor, number: int) -> float:
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            fake_logits = self.inferer(self.augment(fakes), self.discriminator, label)
            seen_reals = self.augment(reals)
            real_logits = self.inferer(seen_reals, self.discriminator, label)
            loss = discriminator_loss(real_logits, fake_logits)
        loss.backward()
        if self.r1_gamma > 0.0 and (number - 1) % self.r1_interval == 0:
            # In fp32, for the second derivative's sake; at the augmented images, which are what the network sees.
            points = seen_reals.detach().requires_grad_(True)
            penalty = r1_penalty(self.inferer(points, self.discriminator, label), points)
            (penalty * (self.r1_gamma / 2 * self.r1_interval)).backward()
        require_finite_gradients(self.discriminator, "the discriminator", number)
        self.discriminator_optimizer.step()
        real_logits = real_logits.detach().reshape(len(reals), -1).mean(dim=1)  # one sign of an image
        self.augment.update(real_logits, number)
        self._r_t = float(real_logits.sign().mean())
        return float(loss.detach())

    def _train_generator(self, fakes: Tensor, reals: Tensor, label: Tensor, number: int) -> float:
        self.generator_optimizer.zero_grad(set_to_none=True)
        self.discriminator.requires_grad_(False)
        with self._autocast():
            loss = generator_loss(self.inferer(self.augment(fakes), self.discriminator, label))
            if self.variety > 0.0:
                loss = loss + self.variety * self._variety_loss(fakes, reals, label)
        loss.backward()
        self.discriminator.requires_grad_(True)
        require_finite_gradients(self.generator, "the generator", number)
        self.generator_optimizer.step()
        return float(loss.detach())

    def _variety_loss(self, fakes: Tensor, reals: Tensor, label: Tensor) -> Tensor:
        # Of the images as they are: augmentation would add its own variance to both sides.
        network = cast(ProjectedDiscriminator, self.discriminator)
        with torch.no_grad():
            features = network.frozen_features(reals)
        loss: Tensor = self.variety_loss(network.frozen_features(fakes), features, label)
        return loss

    @torch.no_grad()
    def _update_average(self, batch_size: int) -> None:
        half_life = self.ema_kimg * 1000.0
        if self.ema_rampup is not None:
            half_life = min(half_life, self.ema_rampup * self.images_seen)
        weight = 1.0 - 0.5 ** (batch_size / max(half_life, 1e-8))
        for mean, value in zip(self.average.parameters(), self.generator.parameters(), strict=True):
            mean.lerp_(value, weight)
