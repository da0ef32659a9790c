# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Training of the encoder that predicts latents of real images, on the generator's samples and on real images.

Sources: Richardson et al., CVPR 2021 (pSp: pixels and LPIPS of the inversion); Tov et al., SIGGRAPH 2021 (e4e: L_d-reg,
which keeps w+ near W). Samples have known latents, as in Zhu et al., "In-Domain GAN Inversion", ECCV 2020, section 3.1;
real images teach what no sample shows.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from bundle.data import ImageData
from bundle.data.dataset import IDENTITY_SPLITS
from bundle.latent.prior import LatentPrior
from bundle.latent.reconstruction import (
    BATCH,
    image_errors,
    mapped_samples,
    nearest_of_others,
    reconstruction_scores,
    reproduce,
)
from bundle.metrics.lpips import embed, lpips_model
from bundle.networks.encoder import Encoder, new_encoder
from bundle.networks.model_set import ModelSet
from bundle.networks.stylegan2 import Generator
from bundle.precision import bf16_autocast
from bundle.training.errors import TrainingError
from bundle.training.info import DATA_KEYS, weights_info
from bundle.training.network_trainer import NetworkTrainer, TrainingTask, role_seed
from bundle.training.samplers import ShuffledBatchSampler

if TYPE_CHECKING:
    import lpips

__all__ = ["ENCODER", "EncoderBatch", "EncoderLoss", "EncoderTarget", "EncoderTrainer", "offset_penalty"]

#: Name of the encoder's weight file.
ENCODER = "encoder"
# Weights of LPIPS and of the pixels' squared error, those of pSp, and of the squared error of the samples' latents.
LAMBDA_LPIPS, LAMBDA_PIXELS, LAMBDA_LATENT = 0.8, 1.0, 1.0
# Maximum gradient norm.
MAX_NORM = 1.0


class EncoderTarget(NamedTuple):
    """What the latents of a batch should be and show.

    Attributes:
        image: images [B, C, H, W] in [-1, 1], the real ones first.
        w: latents of the samples, which are the last images, [S, w_dim].
    """

    image: Tensor
    w: Tensor


@dataclass(frozen=True)
class EncoderBatch:
    """Makes a training batch of real images, followed by samples of the generator.

    The samples are drawn anew in every batch from PyTorch's random state, which the trainer seeds in each iteration.

    Attributes:
        generator: generator G.
        samples: samples in a batch.
    """

    generator: Generator
    samples: int

    @torch.no_grad()
    def __call__(
        self, batch: dict[str, Any], device: torch.device, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, EncoderTarget]:
        """Returns images [B, C, H, W] in [-1, 1] and the target, on the device."""
        images = torch.as_tensor(batch["image"]).to(device, torch.float32, non_blocking=non_blocking)
        z = torch.randn(self.samples, self.generator.z_dim).to(device)
        label = torch.randint(self.generator.num_classes, (self.samples,)).to(device)
        w = self.generator.mapping(z, label)
        with bf16_autocast(torch.device(device)):
            drawn = self.generator.synthesis(w)
        images = torch.cat([images, drawn.float()])
        return images, EncoderTarget(images, w)


class EncoderLoss:
    """Loss of predicted latents: of the samples' latents, of all images, and of the distance from W.

    Args:
        generator: generator G.
        model: network from `bundle.metrics.lpips.lpips_model`.
        deviation: standard deviation of each component in W, [w_dim].
        lambda_delta: weight of `offset_penalty`.
    """

    def __init__(self, generator: Generator, model: lpips.LPIPS, deviation: Tensor, lambda_delta: float) -> None:
        self.generator, self.model, self.deviation = generator, model, deviation
        self.lambda_delta = lambda_delta

    def __call__(self, w: Tensor, target: EncoderTarget) -> Tensor:
        """Returns the loss of latents w [B, layers, w_dim], a differentiable scalar."""
        with bf16_autocast(w.device):
            with torch.no_grad():
                perceived = embed(target.image, self.model)
            image = reproduce(self.generator, w)
            distance, squared = image_errors(image, target.image, perceived, self.model)
        return (
            LAMBDA_LPIPS * distance.mean()
            + LAMBDA_PIXELS * squared.mean()
            + LAMBDA_LATENT * self.latent_error(w, target)
            + self.lambda_delta * offset_penalty(w, self.deviation)
        )

    def latent_error(self, w: Tensor, target: EncoderTarget) -> Tensor:
        """Returns the mean squared error of the samples' latents, in variances of w: 1 if the mean were predicted."""
        known = target.w.unsqueeze(1)
        return ((w[-len(known) :] - known) / self.deviation).square().mean()


def offset_penalty(w: Tensor, deviation: Tensor) -> Tensor:
    """L_d-reg of Tov et al. (SIGGRAPH 2021): the norm of the offsets of all layers from the first, |w_l - w_0|.

    Args:
        w: latents [B, layers, w_dim].
        deviation: standard deviation of each component in W, [w_dim].

    Returns:
        Mean over images and layers, a scalar, in standard deviations of w and relative to the root of w_dim.
    """
    offsets = (w[:, 1:] - w[:, :1]) / deviation
    # The small constant gives offsets of 0, with which training begins, a gradient.
    return (offsets.square().mean(dim=2) + 1e-8).sqrt().mean()


class EncoderTrainer(NetworkTrainer):
    """Trains the encoder of one generator, measures its inversions and writes its weights.

    An epoch is a pass over the training images of the generator. Its JSON names the generator's SHA-256: an encoder of
    another generator is refused, here and by `bundle.networks.model_set.read_infos`.

    Args:
        models: the generator.
        data: data set of the generator; val and test are only measured.
        dataset: images of train and extra, as returned by `ImageData.dataset`.
        output_dir: folder that receives the weights, see `NetworkTrainer`.
        device: device to train on.
        batch_size: images per batch, at least 2.
        real_share: share of real images in a batch, above 0 and below 1; each batch has at least one image of either
            kind.
        lambda_delta: weight of `offset_penalty`: latents nearer to W, at the cost of similarity.
        width: see `Encoder`.
        seed: random seed.
        squeezenet_file: file of the SqueezeNet 1.1 weights; None for those of torchvision.
        **options: further arguments of `NetworkTrainer`, at least max_epochs.

    Raises:
        TrainingError: there are no training images or they are not the generator's, the batch is too small, or the
            folder holds another encoder.
        CheckpointError: see `NetworkTrainer`.
        TrunkUnavailable: the SqueezeNet weights are not available.
    """

    def __init__(
        self,
        models: ModelSet,
        data: ImageData,
        dataset: Dataset[Any],
        output_dir: str | os.PathLike[str],
        device: torch.device | str,
        batch_size: int = 32,
        real_share: float = 0.5,
        lambda_delta: float = 0.1,
        width: int = 32,
        seed: int = 0,
        squeezenet_file: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        if batch_size < 2:
            raise TrainingError("--batch_size is 1; a batch has a real image and a sample. The nearest is 2.")
        description, info = weights_info(data, seed), models.infos["generator"]
        for key in DATA_KEYS:
            if key in info and info[key] != description[key]:
                raise TrainingError(
                    f"The generator was trained on images whose {key} is {info[key]}; that of these is "
                    f"{description[key]}. Name its training images and the modality of its training."
                )
        own_seed = role_seed(ENCODER, seed)
        real = min(max(1, round(real_share * batch_size)), batch_size - 1)
        generator = models.generator.to(device).to(memory_format=torch.channels_last)
        w = mapped_samples(generator, own_seed)
        with torch.random.fork_rng():
            torch.manual_seed(own_seed)
            encoder = new_encoder(generator, w.cpu(), width)
        sampler = ShuffledBatchSampler(len(data.records(IDENTITY_SPLITS)), real, own_seed)
        model = lpips_model(squeezenet_file).to(device)
        self.loss = EncoderLoss(generator, model, encoder.deviation.to(device), lambda_delta)
        task = TrainingTask(
            encoder,
            dataset,
            sampler,
            EncoderBatch(generator, batch_size - real),
            self.loss,
            description,
            settings={
                "batch_size": batch_size,
                "real_share": real_share,
                "lambda_delta": lambda_delta,
                "generator_sha256": info["sha256"],
            },
        )
        super().__init__(ENCODER, task, output_dir, device, seed=seed, max_norm=MAX_NORM, **options)
        self.encoder: Encoder = encoder
        self.data, self.generator = data, generator

    @torch.no_grad()
    def measure(self) -> dict[str, Any]:
        """Returns `reconstruction_scores` of the training images and of the held-out ones (val and test), apart."""
        known, labels, owners = self.data.tensors(IDENTITY_SPLITS)
        unseen, unseen_labels, strangers = self.data.tensors(("val", "test"))
        prior = LatentPrior(self.generator)
        scores = {}
        sets = {"train": (known, labels, owners), "held_out": (unseen, unseen_labels, strangers)}
        for name, (images, classes, whose) in sets.items():
            if not len(images):
                continue
            nearest = nearest_of_others(images, whose, known, owners, self.loss.model)
            device = self.encoder.mean.device
            w = torch.cat([self.encoder(part.to(device)).cpu() for part in images.split(BATCH)])
            scores[name] = reconstruction_scores(
                self.generator, w, images, classes, nearest, self.loss.deviation, prior, self.loss.model
            )
        return {"scores": scores}

    def accuracy(self, output: dict[str, Any]) -> float:
        """Returns the share of the variance of the samples' latents that is predicted, at least 0."""
        with torch.no_grad():
            return max(0.0, 1.0 - float(self.loss.latent_error(output["pred"], output["label"])))
