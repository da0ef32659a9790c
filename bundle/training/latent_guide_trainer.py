# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Distillation of the guides: what they say of G(w), learnt as functions of w.

Source of the idea: Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531; of matching
features instead of probabilities: Romero et al., "FitNets", ICLR 2015.
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
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from bundle.files import load_tensors, save_tensors
from bundle.networks.classifiers import NobodyHead
from bundle.networks.latent_guides import LATENT_GUIDES, LatentGuide
from bundle.networks.sampling import sample_z
from bundle.networks.stylegan2 import Generator
from bundle.precision import bf16_autocast
from bundle.training.errors import TrainingError
from bundle.training.info import DATA_KEYS
from bundle.training.network_trainer import NetworkTrainer, TrainingTask, role_seed
from bundle.training.samplers import ShuffledBatchSampler

__all__ = ["FeatureInferer", "LabelledLatents", "LatentGuideTrainer", "ask_guides", "draw_latents"]

# Latents in a file of labels: what is lost when the labelling is killed.
SHARD = 512
# Images drawn at once.
BATCH = 16
# Latents of a batch whose accuracy is shown; all of a batch would take a tenth of the time.
WATCHED = 32
# Weight of the cosines that the head takes notice of.
NOTICED = 10.0
# Gradients are shortened to this length. Theirs is about 0.3; a perceptron without normalisation may meet one of 100,
# and what Adam makes of it undoes the training so far.
MAX_NORM = 1.0


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
    place = (number.double() * 0.6180339887498949).frac().float()
    place[number // generator.num_classes % 2 == 0] = 0.0
    return torch.lerp(first, second, place.unsqueeze(1).to(device)), label


class _Questions(Dataset[int]):
    """Parts of latents that the guides have not been asked about: to take one is to ask, and to write the answers."""

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
                    features[name].append(guide.features(image).half().cpu())  # type: ignore[operator]
        save_tensors(path, {"w": w.clone(), **{name: torch.cat(values) for name, values in features.items()}})
        return len(w)


def ask_guides(
    generator: Generator, guides: Mapping[str, nn.Module], w: Tensor, folder: str | os.PathLike[str], title: str
) -> dict[str, Tensor]:
    """Draws G(w) and keeps the features that the guides see in it, part by part in files.

    What an earlier call has left in the folder is not computed again. On a CPU, as many processes as PyTorch has
    threads share the work, each with one thread: faster than one with all of them, and the same bits on any machine of
    the kind.

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

    def __getitem__(self, index: int | list[int]) -> dict[str, Tensor]:
        return {"w": self.w[index], "features": self.features[index]}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """Returns a whole batch at once: one by one, taking latents would take longer than learning from them."""
        return self[indices]


def _latent_batch(
    batch: dict[str, Any], device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Returns w [B, w_dim] and the teacher's features [B, features] on the device."""
    w, features = (batch[name].to(device, torch.float32, non_blocking=non_blocking) for name in ("w", "features"))
    return w, features


class FeatureInferer(Inferer):
    """Asks a network for its features, in bf16 on devices that compute in it."""

    def __call__(self, inputs: Tensor, network: LatentGuide, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Maps w [B, w_dim] to features [B, features] in fp32."""
        with bf16_autocast(inputs.device):
            return network.features(inputs)


class LatentGuideTrainer(NetworkTrainer):
    """Trains one student on what its teacher said, and writes its weights.

    The student of an identity guide minimises the squared distance to its teacher's feature of length 1, of which alone
    a `NobodyHead` takes notice, and that of the cosines, as far as the head's answer depends on them; that of a class
    guide the squared distance of the logits, apart from what is the same for all classes. The last layer is the
    teacher's and stays as it is.

    Args:
        name: one of `LATENT_GUIDES`: the name of the weight file.
        infos: JSON of the generator and of the teacher, by name.
        dataset: latents and the teacher's features.
        network: trained in place, in its own scale of latents.
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
                "max_norm": MAX_NORM,
                "generator_sha256": infos["generator"]["sha256"],
                "teacher_sha256": infos[teacher]["sha256"],
                **(settings or {}),
            },
            collate_fn=lambda batch: batch,
        )
        super().__init__(name, task, output_dir, device, seed=seed, inferer=FeatureInferer(), **options)
        self.student = network
        self.examine = examine
        network.head.requires_grad_(False)
        self.add_event_handler(
            IterationEvents.BACKWARD_COMPLETED, lambda: nn.utils.clip_grad_norm_(network.parameters(), MAX_NORM)
        )

    def measure(self) -> dict[str, Any]:
        """Returns what ``examine`` finds."""
        return self.examine(self.student)

    def accuracy(self, output: dict[str, Any]) -> float:
        """Returns the share of some of the latents for which student and teacher name the same class."""
        with torch.no_grad():
            student, teacher = (self.student.head(output[key][:WATCHED]).argmax(dim=1) for key in ("pred", "label"))
        return float((student == teacher).float().mean())

    def _loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        head = self.student.head
        if isinstance(head, NobodyHead):
            teacher = F.normalize(teacher)
            said, wanted = head.cosine(student), head.cosine(teacher)
            # How much of a logit depends on its cosine: d l_k / d (s cos_k), see `NobodyHead`.
            heard = torch.sigmoid(head.scale * (wanted - head.nobody) + math.log(head.weight.shape[0]))
            noticed = (heard * (said - wanted).square()).sum(dim=1).mean()
            # Features of this length vary by about 1 each.
            return F.mse_loss(student, teacher * teacher.shape[1] ** 0.5) + NOTICED * noticed
        logits = [head(features) for features in (student, teacher)]
        return F.mse_loss(*(values - values.mean(dim=1, keepdim=True) for values in logits))
