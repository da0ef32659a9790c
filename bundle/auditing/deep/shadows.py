# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Shadow generators: trained by configs/train_gan.json on known subsets of the patients, and kept by content."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import torch
from monai.bundle import ConfigParser
from torch import Tensor

from bundle.auditing.deep.settings import DeepSettings
from bundle.data import Modality
from bundle.figures import from_uint8
from bundle.files import content_digest, private_folder, write_json
from bundle.networks.stylegan2 import Generator
from bundle.networks.weights import WeightsError, load_weights
from bundle.tracking import tracking_uri

__all__ = ["FOLDER", "MEMORISE", "Pool", "ShadowImages", "draw_halves", "train_shadow"]

#: Folder of the bundle that keeps shadows for all audits of the same images.
FOLDER = "output/shadows"
#: Changes of the recipe by which a generator memorises: no augmentation, no term for variety, and the last weights
#: instead of those with the lowest KID to the validation images.
MEMORISE = {"augment": "fixed", "augment_p": 0.0, "variety": 0.0, "calibrate": False, "measure_kimg": 1e6}
# Thousands of images between two checkpoints of configs/train_gan.json; shorter trainings have one at their end.
EPOCH_KIMG = 4.0
COMPLETE = "complete.json"


@dataclass(frozen=True)
class Pool:
    """Real images of which shadows are trained, or with which they are compared.

    Attributes:
        pixels: uint8 [P, H, W] or [P, H, W, 3].
        labels: labels [P].
        patients: patient number [P] of each image.
    """

    pixels: Tensor
    labels: Tensor
    patients: Tensor

    def part(self, index: Tensor) -> Pool:
        """Returns the images at some indices, in their order and as often as they are named."""
        return Pool(self.pixels[index], self.labels[index], self.patients[index])

    def joined(self, other: Pool) -> Pool:
        """Returns these images and those of another pool, whose patients are counted after these."""
        later = other.patients + (int(self.patients.max()) + 1 if len(self.patients) else 0)
        both = ((self.pixels, other.pixels), (self.labels, other.labels), (self.patients, later))
        return Pool(*(torch.cat(pair) for pair in both))

    def digest(self) -> str:
        """Returns a hash of pixels and labels."""
        content = hashlib.sha256(self.pixels.contiguous().numpy().tobytes())
        content.update(self.labels.numpy().tobytes())
        return content.hexdigest()


class ShadowImages:
    """Training images of one shadow, in the place of the data set of configs/train_gan.json.

    It has those parts of `bundle.data.ImageData` that the configuration reads.

    Args:
        train: training images; an image may be named several times.
        val: images that select the best weights; no shadow is trained on them.
        modality: preset of the images.
        class_names: name of each label.
    """

    def __init__(self, train: Pool, val: Pool, modality: Modality, class_names: Sequence[str]) -> None:
        self.pools = {"train": train, "val": val}
        self.modality = modality
        self.class_names = tuple(class_names)
        self.resolution = int(train.pixels.shape[1])
        self.n_identities = len(train.patients.unique())
        parts = [train.digest(), val.digest(), modality.preprocessing, self.class_names]
        self.split_sha256 = hashlib.sha256(repr(parts).encode()).hexdigest()

    def __str__(self) -> str:
        """Returns the hash of the images, by which the record of a changed configuration names them."""
        return self.split_sha256

    def records(self, splits: str | Sequence[str]) -> range:
        """Returns one entry for each image of one or more splits."""
        return range(sum(len(pool.pixels) for name, pool in self.pools.items() if name in splits))

    def dataset(self, splits: str | Sequence[str]) -> list[dict[str, Any]]:
        """Returns the items of one or more splits, see `bundle.data.ImageData.dataset`."""
        return [
            {"image": image, "label": int(label), "identity": int(patient), "split": name}
            for name, pool in self.pools.items()
            if name in splits
            for image, label, patient in zip(from_uint8(pool.pixels), pool.labels, pool.patients, strict=True)
        ]

    def tensors(self, split: str) -> tuple[Tensor, Tensor, Tensor]:
        """Returns images [N, C, H, W] in [-1, 1], labels [N] and identities [N], all -1, of a split."""
        pool = self.pools[split]
        return from_uint8(pool.pixels), pool.labels, torch.full((len(pool.labels),), -1)


def draw_halves(pool: Pool, n: int, seed: int) -> Tensor:
    """Draws, for each of n shadows, the random half of the patients whose images it is trained on.

    Halves are drawn independently, and within the patients of each class. Were every patient in exactly half of the
    shadows, the others' memberships would tell the attacked one's.

    Args:
        pool: images of the patients; the class of a patient is that of the first image.
        n: number of shadows.
        seed: seed of the halves.

    Returns:
        Whether each shadow is trained on each image, bool [n, P].
    """
    patients, first = np.unique(pool.patients.numpy(), return_index=True)
    classes = pool.labels.numpy()[first]
    member = np.zeros((n, len(pool.patients)), dtype=bool)
    for number in range(n):
        random = np.random.default_rng((seed, number))
        for label in np.unique(classes):
            mine = random.permutation(patients[classes == label])
            size = (len(mine) + int(random.integers(2))) // 2
            member[number] |= np.isin(pool.patients.numpy(), mine[:size])
    return torch.from_numpy(member)


def train_shadow(
    images: ShadowImages,
    settings: DeepSettings,
    seed: int,
    device: str | torch.device,
    changes: Mapping[str, Any] | None = None,
) -> Generator:
    """Trains a shadow, resumes its training, or loads it if an earlier audit of the same images has trained it.

    Args:
        images: its images.
        settings: options, which name the length of the training.
        seed: seed of the training.
        device: device of the training and of the generator.
        changes: changed options of configs/train_gan.json.

    Raises:
        WeightsError: the folder named after the images does not hold the weights of this training.
    """
    config = Path(settings.bundle_root) / "configs" / "train_gan.json"
    key = [images.split_sha256, settings.recipe(), seed, dict(changes or {}), ConfigParser.load_config_file(config)]
    home = Path(settings.bundle_root) / FOLDER / content_digest(key)
    if not (home / COMPLETE).exists():
        options: dict[str, Any] = {
            "resolution": settings.shadow_resolution,
            "total_kimg": settings.shadow_kimg,
            "epoch_kimg": min(EPOCH_KIMG, settings.shadow_kimg),
            "discriminator": settings.shadow_discriminator,
            "resnet18_file": settings.resnet18_file,
            "squeezenet_file": settings.squeezenet_file,
            **(changes or {}),
        }
        monai.bundle.run(
            config_file=str(config),
            bundle_root=settings.bundle_root,
            data=images,
            dataset_dir=str(private_folder(home)),
            output_dir=str(home),
            tracking_uri=tracking_uri(home.parent),  # one store for all shadows
            run_name=home.name,
            modality=images.modality,
            seed=seed,
            device=str(device),
            **options,
        )
        # The checkpoint is several times as large as the weights, and nothing resumes a finished shadow.
        shutil.rmtree(home / "checkpoints")
        write_json(home / COMPLETE, {"split_sha256": images.split_sha256, "seed": seed})
    network, info = load_weights(home / "models" / "generator.pt", device)
    if not isinstance(network, Generator) or info["split_sha256"] != images.split_sha256:
        raise WeightsError(f"{home} does not hold what its name says. Remove that folder and run again.")
    return network
