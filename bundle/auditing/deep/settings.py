# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Options of the attacks on the generator."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bundle.files import sha256_file

__all__ = ["DeepSettings"]

# Options that say where files are, which are identified by their content instead.
PLACES = ("models_dir", "bundle_root", "resnet18_file", "squeezenet_file")


@dataclass(frozen=True)
class DeepSettings:
    """Options of the attacks on the generator.

    Attributes:
        n_shadows: number of shadow generators, each trained on the images of a random half of the patients.
        shadow_resolution: side of the images of shadow generators and of all images that are compared, in pixels.
        shadow_kimg: length of a shadow's training, in thousands of images.
        shadow_samples: number of samples of a generator among which the nearest one to each real image is sought.
        shadow_discriminator: see the option ``discriminator`` of configs/train_gan.json.
        n_canaries: number of canaries for each number of repeats.
        deep_controls: whether to train a generator that should memorise, which the attack must find.
        inversion_images: largest number of members, and of never-seen images, that are reconstructed.
        inversion_steps: gradient steps of a reconstruction.
        inversion_starts: latents from which each reconstruction starts.
        models_dir: folder of the audited generator.
        bundle_root: folder of the bundle, with its configurations.
        resnet18_file: see configs/train_gan.json.
        squeezenet_file: file of the SqueezeNet 1.1 weights; None for those of torchvision.
    """

    n_shadows: int = 16
    shadow_resolution: int = 64
    shadow_kimg: float = 40.0
    shadow_samples: int = 1024
    shadow_discriminator: str = "auto"
    n_canaries: int = 20
    deep_controls: bool = True
    inversion_images: int = 64
    inversion_steps: int = 100
    inversion_starts: int = 2
    models_dir: str = "models/xray"
    bundle_root: str = "."
    resnet18_file: str | None = None
    squeezenet_file: str | None = None

    def plain(self) -> dict[str, Any]:
        """Returns the options without places, for results and names of folders."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in PLACES}

    def recipe(self) -> dict[str, Any]:
        """Returns plain values that identify how each shadow is trained, besides its images and its seed."""
        files: dict[str, str | os.PathLike[str] | None] = {
            "resnet18": self.resnet18_file,
            "squeezenet": self.squeezenet_file,
        }
        return {
            "resolution": self.shadow_resolution,
            "kimg": self.shadow_kimg,
            "discriminator": self.shadow_discriminator,
            **{name: sha256_file(path) if path else None for name, path in files.items()},
        }

    def generator_sha256(self) -> str | None:
        """Returns the hash of the audited generator; None if there is none."""
        path = Path(self.models_dir) / "generator.pt"
        return sha256_file(path) if path.exists() else None
