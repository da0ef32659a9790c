# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""StyleGAN2-ADA training as a MONAI engine.

Sources: Karras et al., CVPR 2020 (StyleGAN2) and NeurIPS 2020 (ADA). Style mixing and path length regularisation are
left out: at this size and with hundreds of images they only cost time (ADA, appendix D, drops the mixing).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bundle.networks.projected import ProjectedDiscriminator
from bundle.networks.resnet import STAGES
from bundle.networks.stylegan2 import Discriminator, Generator
from bundle.precision import bf16_autocast
from bundle.training.augment import AdaptiveAugment
from bundle.training.core import ResumableTrainer
from bundle.training.gradients import require_finite_gradients
from bundle.training.losses import discriminator_loss, generator_loss, lazy_adam, r1_penalty
from bundle.training.samplers import BalancedBatchSampler
from bundle.training.variety import VarietyLoss

__all__ = ["StyleGAN2Trainer", "balanced_loader", "default_r1_gamma", "prepare_gan_batch"]

# Iterations between two evaluations of the loss on variety, which costs as much as a step of the discriminator. As with
# lazy R1 (StyleGAN2, section 3.1), its weight makes up for the iterations without it.
VARIETY_INTERVAL = 4


def default_r1_gamma(resolution: int, batch_size: int) -> float:
    """Returns the heuristic R1 weight 0.0002 resolution^2 / batch size (Karras et al., NeurIPS 2020, appendix C)."""
    return 0.0002 * resolution**2 / batch_size


def prepare_gan_batch(
    batch: dict[str, Any], device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Returns a batch's images [B, C, H, W] in [-1, 1] and labels [B] as plain tensors on the device."""
    images = torch.as_tensor(batch["image"]).to(device, torch.float32, non_blocking=non_blocking)
    labels = torch.as_tensor(batch["label"]).to(device, torch.int64, non_blocking=non_blocking)
    return images, labels


def balanced_loader(dataset: Dataset[dict[str, Any]], batch_size: int, seed: int) -> DataLoader[dict[str, Any]]:
    """Builds the endless data loader of `StyleGAN2Trainer`, with a `BalancedBatchSampler`.

    Args:
        dataset: dictionaries with ``image`` [C, H, W] in [-1, 1], ``label`` and ``split``, held in memory.
        batch_size: images per batch.
        seed: random seed of the batches.
    """
    items = [dataset[i] for i in range(len(dataset))]  # type: ignore[arg-type]
    labels, splits = [int(item["label"]) for item in items], [item["split"] for item in items]
    return DataLoader(dataset, batch_sampler=BalancedBatchSampler(labels, batch_size, seed, splits))


class StyleGAN2Trainer(ResumableTrainer):
    """Trains a conditional StyleGAN2 with the non-saturating loss, lazy R1, ADA and an average of the generator.

    The output of an iteration holds ``reals`` and ``fakes`` [B, C, H, W], ``latents`` [B, z_dim], the scalars
    ``g_loss``, ``d_loss`` and ``loss`` (their sum), ``p`` (augmentation), ``r_t`` (mean sign of the logits) and
    ``variety`` (`VarietyLoss.share`; 1 if that loss is off).

    Args:
        device: device to train on.
        max_epochs: number of epochs, of ``epoch_length`` iterations each.
        train_data_loader: loader of batches for ``prepare_batch``, with a `BalancedBatchSampler`; see
            `balanced_loader`.
        epoch_length: iterations per epoch.
        generator: generator to train, in place.
        discriminator: discriminator to train, in place.
        augment: augmentation of the discriminator's inputs.
        learning_rate: learning rate of the generator.
        discriminator_learning_rate: learning rate of the discriminator; None for the generator's.
        r1_gamma: weight of R1; 0 disables it.
        r1_interval: iterations between two evaluations of R1.
        variety: weight of `VarietyLoss`, computed on the features of a `ProjectedDiscriminator`; 0 disables it.
        ema_kimg: half-life of the generator's average, in thousands of images.
        ema_rampup: largest half-life as a share of the images seen so far, so that random initial weights soon leave
            the average; None for trained initial weights.
        seed: random seed of the training.
        inferer: inferer of the discriminator, ``inferer(images, discriminator, label)``.
        prepare_batch: converts a batch to images and labels on the device.
        train_handlers: Ignite handlers.
        amp: whether to compute in bf16 on devices that support it; R1 is always computed in fp32.

    Raises:
        TypeError: the loader has no `BalancedBatchSampler`, so that the run could not resume; or variety is above 0 and
            the discriminator has no frozen features.
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
        # MONAI's amp would create a CUDA gradient scaler, which bf16 does not need.
        super().__init__(
            "the GAN",
            seed,
            train_data_loader.batch_sampler,
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            epoch_length=epoch_length,
            prepare_batch=prepare_batch,
            handlers=train_handlers,
            amp=False,
            decollate=False,
        )
        for network in (generator, discriminator):
            network.to(memory_format=torch.channels_last).to(self.state.device).requires_grad_(True).train()
        self.generator, self.discriminator = generator, discriminator
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.augment = augment.to(self.state.device)
        self.variety_loss = VarietyLoss(len(STAGES), generator.num_classes).to(self.state.device)
        self.generator_optimizer = lazy_adam(list(generator.parameters()), learning_rate, (0.0, 0.99))
        self.discriminator_optimizer = lazy_adam(
            list(discriminator.parameters()),
            learning_rate if discriminator_learning_rate is None else discriminator_learning_rate,
            (0.0, 0.99),
            r1_interval if r1_gamma > 0.0 else None,
        )
        self.r1_gamma, self.r1_interval = r1_gamma, r1_interval
        self.variety = variety
        self.ema_kimg, self.ema_rampup = ema_kimg, ema_rampup
        self.inferer = SimpleInferer() if inferer is None else inferer
        self.bf16 = amp

    def stateful(self) -> dict[str, Any]:
        """Returns the networks, the augmentation, the variety loss and the optimisers."""
        return {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "average": self.average,
            "augment": self.augment,
            "variety_loss": self.variety_loss,
            "generator_optimizer": self.generator_optimizer,
            "discriminator_optimizer": self.discriminator_optimizer,
        }

    def training_state(self) -> dict[str, Any]:
        """Returns the complete state for resuming bit for bit, and ``images_seen``, which earlier versions read."""
        return {**super().training_state(), "images_seen": self.images_seen}

    def _autocast(self) -> torch.autocast:
        return bf16_autocast(self.state.device, self.bf16)

    def _generate(self, label: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.randn(label.shape[0], self.generator.z_dim, device=label.device)
        return self.generator.synthesis.unclamped(self.generator.mapping(z, label), "random"), z

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> dict[str, Any]:
        number = self.state.iteration  # counted from 1
        self.seed_iteration()
        reals, label = self.prepare_batch(batchdata, self.state.device, self.non_blocking, **self.to_kwargs)
        reals = reals.contiguous(memory_format=torch.channels_last)

        # Both networks' steps share one batch of fakes, which saves a forward pass.
        with self._autocast():
            fakes, latents = self._generate(label)
        d_loss = self._train_discriminator(reals, fakes.detach(), label, number)
        g_loss = self._train_generator(fakes, reals, label, number)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)

        self._update_average()
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
            # In fp32 for the sake of the second derivative, and at the augmented images, which the network receives.
            points = seen_reals.detach().requires_grad_(True)
            penalty = r1_penalty(self.inferer(points, self.discriminator, label), points)
            (penalty * (self.r1_gamma / 2 * self.r1_interval)).backward()
        require_finite_gradients(self.discriminator, "the discriminator", number)
        self.discriminator_optimizer.step()
        real_logits = real_logits.detach().reshape(len(reals), -1).mean(dim=1)  # one sign per image
        self.augment.update(real_logits, number)
        self._r_t = float(real_logits.sign().mean())
        return float(loss.detach())

    def _train_generator(self, fakes: Tensor, reals: Tensor, label: Tensor, number: int) -> float:
        self.generator_optimizer.zero_grad(set_to_none=True)
        self.discriminator.requires_grad_(False)
        with self._autocast():
            loss = generator_loss(self.inferer(self.augment(fakes), self.discriminator, label))
            if self.variety > 0.0 and (number - 1) % VARIETY_INTERVAL == 0:
                loss = loss + VARIETY_INTERVAL * self.variety * self._variety_loss(fakes, reals, label)
        loss.backward()
        self.discriminator.requires_grad_(True)
        require_finite_gradients(self.generator, "the generator", number)
        self.generator_optimizer.step()
        return float(loss.detach())

    def _variety_loss(self, fakes: Tensor, reals: Tensor, label: Tensor) -> Tensor:
        # Measured without augmentation, which would add its own variance to both sides.
        network = cast(ProjectedDiscriminator, self.discriminator)
        with torch.no_grad():
            features = network.frozen_features(reals)
        loss: Tensor = self.variety_loss(network.frozen_features(fakes), features, label)
        return loss

    @torch.no_grad()
    def _update_average(self) -> None:
        half_life = self.ema_kimg * 1000.0
        if self.ema_rampup is not None:
            half_life = min(half_life, self.ema_rampup * self.images_seen)
        weight = 1.0 - 0.5 ** (self.batch_size / max(half_life, 1e-8))
        for mean, value in zip(self.average.parameters(), self.generator.parameters(), strict=True):
            mean.lerp_(value, weight)
