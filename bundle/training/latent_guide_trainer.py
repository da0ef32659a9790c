# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Distillation of the guides into students that predict the guides' features of G(w) from w.

Sources: Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531; for matching features instead
of probabilities, Romero et al., "FitNets", ICLR 2015.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.inferers import Inferer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from bundle.files import load_tensors, save_tensors
from bundle.networks.classifiers import NobodyHead
from bundle.networks.latent_guides import LATENT_GUIDES, LatentGuide, LatentRealism
from bundle.networks.realism import RealismJudge
from bundle.networks.sampling import sample_z
from bundle.networks.stylegan2 import Generator
from bundle.precision import bf16_autocast
from bundle.training.errors import TrainingError
from bundle.training.info import DATA_KEYS
from bundle.training.network_trainer import NetworkTrainer, TrainingTask, role_seed
from bundle.training.samplers import ShuffledBatchSampler

__all__ = ["FeatureInferer", "LabelledLatents", "LatentGuideTrainer", "ask_guides", "draw_latents"]

# Latents per file of teacher features: the most work that is lost when the process is killed.
SHARD = 512
# Images synthesised at once.
BATCH = 16
# Latents per batch on which the displayed accuracy is computed; using all would take a tenth of the training time.
WATCHED = 32
# Weight of the loss on cosines to which the head's output is sensitive.
NOTICED = 10.0
# Maximum gradient norm. Typical norms are about 0.3; without normalisation layers, a rare norm of 100 would make Adam
# undo the training so far.
MAX_NORM = 1.0


@torch.no_grad()
def draw_latents(generator: Generator, numbers: Iterable[int], seed: int) -> tuple[Tensor, Tensor]:
    """Samples latents where walks begin: half from the mapping network, half on lines between two such samples.

    Args:
        generator: G.
        numbers: indices of the latents; each latent depends on its own index and the seed alone.
        seed: random seed, at least 0.

    Returns:
        w [N, w_dim] and label [N], cycling through the classes.
    """
    device = next(generator.parameters()).device
    number = torch.tensor(list(numbers))
    label = number % generator.num_classes
    first, second = (
        generator.mapping(sample_z((2 * number + end).tolist(), generator.z_dim, seed).to(device), label.to(device))
        for end in range(2)
    )
    # Multiples of the golden ratio spread the positions on the lines evenly, whichever indices are requested.
    place = (number.double() * 0.6180339887498949).frac().float()
    place[number // generator.num_classes % 2 == 0] = 0.0
    return torch.lerp(first, second, place.unsqueeze(1).to(device)), label


class _Questions(Dataset[int]):
    """Parts of the latents that the guides have yet to evaluate; taking an item evaluates it and writes its file."""

    def __init__(self, generator: Generator, guides: Mapping[str, nn.Module], parts: Mapping[Path, Tensor]) -> None:
        self.generator = generator
        self.guides = guides
        self.parts = list(parts.items())

    def __len__(self) -> int:
        return len(self.parts)

    @torch.no_grad()
    def __getitem__(self, index: int) -> int:
        path, w = self.parts[index]
        device = next(self.generator.parameters()).device
        features: dict[str, list[Tensor]] = {name: [] for name in self.guides}
        for few in w.split(BATCH):
            with bf16_autocast(device):
                image = self.generator.synthesis(few.to(device)).contiguous(memory_format=torch.channels_last)
                for name, guide in self.guides.items():
                    found = guide(image) if isinstance(guide, RealismJudge) else guide.features(image)  # type: ignore[operator]
                    features[name].append(found.half().cpu())
        save_tensors(path, {"w": w.clone(), **{name: torch.cat(values) for name, values in features.items()}})
        return len(w)


def ask_guides(
    generator: Generator, guides: Mapping[str, nn.Module], w: Tensor, folder: str | os.PathLike[str], title: str
) -> dict[str, Tensor]:
    """Synthesises G(w) and computes the guides' features, in parts that are cached in files.

    Parts that an earlier call has left in the folder are not computed again. On a CPU, the parts are distributed over
    as many single-threaded processes as PyTorch has threads: this is faster than one process with all threads, and the
    bits do not depend on the number of cores.

    Args:
        generator: G.
        guides: guides, by the names that the result uses.
        w: latents, [N, w_dim].
        folder: folder of the files, for these latents alone.
        title: title of the progress bar.

    Returns:
        Features of each guide, [N, features], fp16, on the CPU.

    Raises:
        TrainingError: the folder holds the features of other latents.
    """
    for network in (generator, *guides.values()):
        network.to(memory_format=torch.channels_last)
    parts = {Path(folder) / f"{number:05d}.pt": part for number, part in enumerate(w.cpu().split(SHARD))}
    questions = _Questions(generator, guides, {path: part for path, part in parts.items() if not path.exists()})
    workers = torch.get_num_threads() if next(generator.parameters()).device.type == "cpu" else 0
    done = len(w) - sum(len(part) for _, part in questions.parts)
    slow = 0.5 if sys.stderr.isatty() else 60.0
    with tqdm(
        total=len(w), initial=done, unit="image", unit_scale=True, desc=title, mininterval=slow, dynamic_ncols=True
    ) as bar:
        for number in DataLoader(questions, batch_size=None, num_workers=min(workers, len(questions))):
            bar.update(number)
    answers: dict[str, list[Tensor]] = {name: [] for name in guides}
    for path, part in parts.items():
        content = load_tensors(path)
        if not torch.equal(content["w"], part):
            raise TrainingError(f"{path} holds what the guides said of other latents. Remove {folder}.")
        for name in guides:
            answers[name].append(content[name])
    return {name: torch.cat(values) for name, values in answers.items()}


class LabelledLatents(Dataset[dict[str, Tensor]]):
    """Dataset of latents and a guide's features of their images.

    Args:
        w: latents, [N, w_dim].
        features: the guide's features, [N, features].
    """

    def __init__(self, w: Tensor, features: Tensor) -> None:
        self.w = w
        self.features = features

    def __len__(self) -> int:
        return len(self.w)

    def __getitem__(self, index: int | list[int]) -> dict[str, Tensor]:
        return {"w": self.w[index], "features": self.features[index]}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """Returns a whole batch at once; indexing latents one by one would take longer than the training step."""
        return self[indices]


def _latent_batch(
    batch: dict[str, Any], device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Returns w [B, w_dim] and the teacher's features [B, features] on the device."""
    w, features = (batch[name].to(device, torch.float32, non_blocking=non_blocking) for name in ("w", "features"))
    return w, features


class FeatureInferer(Inferer):
    """Computes a network's features, in bf16 on devices that support it."""

    def __call__(self, inputs: Tensor, network: LatentGuide, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Maps w [B, w_dim] to features [B, features] in fp32."""
        with bf16_autocast(inputs.device):
            return network.features(inputs)


class LatentGuideTrainer(NetworkTrainer):
    """Trains one student on its teacher's features and writes its weights.

    The student of an identity guide minimises the squared distance to its teacher's normalised feature (the
    `NobodyHead` depends on its direction alone) and that of the cosines, weighted by the head's sensitivity to them.
    The student of a class guide minimises the squared distance of the logits after subtracting their mean over classes.
    The last layer is copied from the teacher and frozen. The student of a judge of realism minimises the squared
    difference of log(1 + d).

    Args:
        name: one of `LATENT_GUIDES`, the name of the weight file.
        infos: JSON descriptions of the generator and the teacher, by name.
        dataset: latents and the teacher's features.
        network: student to train, in place.
        examine: evaluation of the trained network; returns further entries of the weights' JSON, including ``scores``.
        output_dir: folder that receives the weights, see `NetworkTrainer`.
        device: device to train on.
        batch_size: latents per batch.
        seed: random seed shared by all students; each derives its own from it.
        settings: further settings on which the weights depend.
        **options: further arguments of `NetworkTrainer`, at least max_epochs.

    Raises:
        TrainingError: there are no latents, or the folder holds the weights of another training.
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
        task = TrainingTask(
            network,
            dataset,
            sampler,
            _latent_batch,
            self._loss,
            description={key: infos["generator"][key] for key in DATA_KEYS if key in infos["generator"]},
            settings={
                "batch_size": batch_size,
                "n_latents": len(dataset),
                "generator_sha256": infos["generator"]["sha256"],
                "teacher_sha256": infos[teacher]["sha256"],
                **(settings or {}),
            },
            collate_fn=lambda batch: batch,
        )
        super().__init__(
            name, task, output_dir, device, seed=seed, inferer=FeatureInferer(), max_norm=MAX_NORM, **options
        )
        self.student = network
        self.examine = examine
        network.head.requires_grad_(False)

    def measure(self) -> dict[str, Any]:
        """Returns the result of ``examine``."""
        return self.examine(self.student)

    def accuracy(self, output: dict[str, Any]) -> float:
        """Returns the share of a batch's first latents for which student and teacher predict the same class."""
        with torch.no_grad():
            student, teacher = (self.student.head(output[key][:WATCHED]).argmax(dim=1) for key in ("pred", "label"))
        return float((student == teacher).float().mean())

    def _loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        head = self.student.head
        if isinstance(self.student, LatentRealism):
            return F.mse_loss(student, teacher)
        if isinstance(head, NobodyHead):
            teacher = F.normalize(teacher)
            said, wanted = head.cosine(student), head.cosine(teacher)
            # Sensitivity of a logit to its cosine, d l_k / d (s cos_k), see `NobodyHead`.
            heard = torch.sigmoid(head.scale * (wanted - head.nobody) + math.log(head.weight.shape[0]))
            noticed = (heard * (said - wanted).square()).sum(dim=1).mean()
            # With this norm, each feature has a variance of about 1.
            return F.mse_loss(student, teacher * teacher.shape[1] ** 0.5) + NOTICED * noticed
        logits = [head(features) for features in (student, teacher)]
        return F.mse_loss(*(values - values.mean(dim=1, keepdim=True) for values in logits))
