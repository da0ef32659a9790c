# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Distillation of the guides: what they say of G(w), learnt as functions of w.

Source of the idea: Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531; of matching
features instead of probabilities: Romero et al., "FitNets", ICLR 2015.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.inferers import Inferer
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from bundle.files import atomic_write
from bundle.networks.latent_guides import LATENT_GUIDES, LatentGuide
from bundle.networks.sampling import sample_z
from bundle.networks.stylegan2 import Generator
from bundle.training.guides import ShuffledBatchSampler
from bundle.training.info import DATA_KEYS
from bundle.training.network_trainer import NetworkTrainer, TrainingError, role_seed

__all__ = ["FeatureInferer", "LabelledLatents", "LatentGuideTrainer", "ask_guides", "draw_latents"]

# Latents in a file of labels: what is lost when the labelling is killed.
SHARD = 1024
# Images drawn at once.
BATCH = 16


@torch.no_grad()
def draw_latents(generator: Generator, numbers: Iterable[int], seed: int) -> tuple[Tensor, Tensor]:
    """Draws latents where walks begin: half of them samples of the mapping network, half on lines between two.

    Args:
        generator: G.
        numbers: of the latents; each depends on its own number and the seed alone.
        seed: at least 0.

    Returns:
        w [N, w_dim] and label [N], the classes in turn.
    """
    device = next(generator.parameters()).device
    number = torch.tensor(list(numbers))
    label = number % generator.num_classes
    first, second = (
        generator.mapping(sample_z((2 * number + end).tolist(), generator.z_dim, seed).to(device), label.to(device))
        for end in range(2)
    )
    # The golden ratio spreads the places on the lines evenly, whichever numbers are asked for.
    place = (number * 0.6180339887498949).frac().float()
    place[number // generator.num_classes % 2 == 0] = 0.0
    return torch.lerp(first, second, place.unsqueeze(1).to(device)), label


@torch.no_grad()
def ask_guides(
    generator: Generator, guides: Mapping[str, nn.Module], w: Tensor, folder: str | os.PathLike[str], title: str
) -> dict[str, Tensor]:
    """Draws G(w) and keeps the features that the guides see in it, in bf16, part by part in files.

    What an earlier call has left in the folder is not computed again.

    Args:
        generator: G.
        guides: phi, by name.
        w: [N, w_dim].
        folder: for the files of these latents alone.
        title: of the progress bar.

    Returns:
        For each guide its features [N, features], fp16, on the CPU.

    Raises:
        TrainingError: the folder holds the labels of other latents.
    """
    device = next(generator.parameters()).device
    networks = [generator, *guides.values()]
    for network in networks:
        network.to(memory_format=torch.channels_last)
    shards = w.cpu().split(SHARD)
    slow = 0.5 if sys.stderr.isatty() else 60.0
    found: dict[str, list[Tensor]] = {name: [] for name in guides}
    with tqdm(total=len(w), unit="image", unit_scale=True, desc=title, mininterval=slow, dynamic_ncols=True) as bar:
        for number, shard in enumerate(shards):
            path = Path(folder) / f"{number:05d}.pt"
            if not path.exists():
                parts: dict[str, list[Tensor]] = {name: [] for name in guides}
                for part in shard.split(BATCH):
                    with torch.autocast(device.type, dtype=torch.bfloat16):
                        image = generator.synthesis(part.to(device)).contiguous(memory_format=torch.channels_last)
                        for name, guide in guides.items():
                            parts[name].append(guide.features(image).half().cpu())  # type: ignore[operator]
                    bar.update(len(part))
                with atomic_write(path) as temporary:
                    torch.save(
                        {"w": shard.clone(), **{name: torch.cat(values) for name, values in parts.items()}}, temporary
                    )
            else:
                bar.update(len(shard))
            content = torch.load(path, map_location="cpu", weights_only=True)
            if not torch.equal(content["w"], shard):
                raise TrainingError(f"{path} holds what the guides said of other latents. Remove {folder}.")
            for name in guides:
                found[name].append(content[name])
    return {name: torch.cat(values) for name, values in found.items()}


class LabelledLatents(Dataset[dict[str, Tensor]]):
    """Latents and the features that a guide sees in their images.

    Args:
        w: [N, w_dim].
        features: [N, features].
    """

    def __init__(self, w: Tensor, features: Tensor) -> None:
        self.w = w
        self.features = features

    def __len__(self) -> int:
        return len(self.w)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"w": self.w[index], "features": self.features[index]}


def _latent_batch(
    batch: dict[str, Any], device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Returns w [B, w_dim] and the teacher's features [B, features] on the device."""
    w, features = (batch[name].to(device, torch.float32, non_blocking=non_blocking) for name in ("w", "features"))
    return w, features


class FeatureInferer(Inferer):
    """Asks a network for its features, in bf16."""

    def __call__(self, inputs: Tensor, network: LatentGuide, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Maps w [B, w_dim] to features [B, features] in fp32."""
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16):
            return network.features(inputs)


class LatentGuideTrainer(NetworkTrainer):
    """Trains one student on what its teacher said, and writes its weights.

    The student of an identity guide minimises the squared distance to its teacher's feature of length 1, of which alone
    a `NobodyHead` takes notice; that of a class guide the squared distance of the logits, apart from what is the same
    for all classes. The last layer is the teacher's and stays as it is.

    Args:
        name: one of `LATENT_GUIDES`: the name of the weight file.
        infos: JSON of the generator and of the teacher, by name.
        dataset: latents and the teacher's features.
        network: trained in place.
        examine: measures the trained network: further entries of the weights' JSON, ``scores`` among them.
        output_dir: gets the weights, see `NetworkTrainer`.
        device: where to train.
        batch_size: latents in a batch.
        seed: of all students.
        settings: what else the weights depend on.
        **options: further arguments of `NetworkTrainer`, max_epochs at least.

    Raises:
        TrainingError: there is nothing to train on, or the weights of another training are in the way.
    """

    def __init__(
        self,
        name: str,
        infos: Mapping[str, dict[str, Any]],
        dataset: LabelledLatents,
        network: LatentGuide,
        examine: Callable[[nn.Module], dict[str, Any]],
        output_dir: str | os.PathLike[str],
        device: torch.device | str,
        batch_size: int = 256,
        seed: int = 0,
        settings: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        teacher = LATENT_GUIDES[name][0]
        sampler = ShuffledBatchSampler(len(dataset), batch_size, role_seed(name, seed))
        network.standardise(dataset.w)
        super().__init__(
            name,
            {key: infos["generator"][key] for key in DATA_KEYS if key in infos["generator"]},
            dataset,
            sampler,
            len(sampler),
            network,
            _latent_batch,
            self._loss,
            {
                "batch_size": batch_size,
                "n_latents": len(dataset),
                "generator_sha256": infos["generator"]["sha256"],
                "teacher_sha256": infos[teacher]["sha256"],
                **(settings or {}),
            },
            output_dir,
            device,
            seed=seed,
            inferer=FeatureInferer(),
            **options,
        )
        self.student = network
        self.examine = examine
        network.head.requires_grad_(False)

    def measure(self) -> dict[str, Any]:
        """Returns what ``examine`` finds."""
        return self.examine(self.student)

    def accuracy(self, output: dict[str, Any]) -> float:
        """Returns the share of latents for which student and teacher name the same class."""
        with torch.no_grad():
            student, teacher = (self.student.head(output[key]).argmax(dim=1) for key in ("pred", "label"))
        return float((student == teacher).float().mean())

    def _loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.student.arguments["identity"]:
            length = teacher.shape[1] ** 0.5  # so that features vary by about 1 each
            return F.mse_loss(student, F.normalize(teacher) * length)
        logits = [self.student.head(features) for features in (student, teacher)]
        return F.mse_loss(*(values - values.mean(dim=1, keepdim=True) for values in logits))
