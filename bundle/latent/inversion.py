# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The command ``invert``: latents of all images of a data set, in parts that survive an interruption."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bundle.data import DataError, DatasetDir, ImageData, Modality, open_dataset
from bundle.data.records import SPLITS
from bundle.data.splits import splits_home
from bundle.figures import image_grid, save_png
from bundle.files import content_digest, private_folder, sweep_temporary
from bundle.latent.inverter import InversionError, InversionSettings, Inverter
from bundle.latent.real_latents import LATENTS, PARTS, RealLatents, load_latents, save_latents, spread_out
from bundle.latent.reconstruction import synthesise
from bundle.lock import run_lock
from bundle.networks.encoder import Encoder
from bundle.networks.model_set import ModelInfos, ModelSet
from bundle.steps import Step, StepEngine, Steps, Tensors

__all__ = ["Inversion", "open_images"]

# Pairs of an image and its inversion in a row of the picture.
PAIRS = 8


def open_images(
    dataset_dir: DatasetDir,
    models: ModelInfos,
    models_dir: str,
    output_dir: str,
    modality: str | Modality,
    layout: str | Mapping[str, Any] = "auto",
    patient_pattern: str | None = None,
    drop_duplicates: bool | None = None,
) -> ImageData:
    """Opens images to invert: those that the generator was trained on, with their splits, or any others.

    Args:
        dataset_dir: path of the folder of images, or of several.
        models: description of the generator, whose JSON names modality, resolution and seed of the splits.
        models_dir: folder of the models, in whose parent the training may have stored its split file.
        output_dir: output folder of this command.
        modality: preset of the kind of image, or its name.
        layout: see `bundle.data.open_dataset`.
        patient_pattern: see `bundle.data.open_dataset`.
        drop_duplicates: see `bundle.data.open_dataset`.

    Returns:
        The images. Their ``split_sha256`` is the generator's if they are its images with its splits.

    Raises:
        DataError: the images cannot be used.
        InversionError: they are of another kind than the generator's, or of other classes.
    """
    info = models.infos["generator"]
    if str(modality) != info["modality"]:
        raise InversionError(
            f"The generator in {models_dir} makes images of {info['modality']}, not of {modality}. Name models of "
            f"{modality}, or give --modality {info['modality']} if the images are of that kind."
        )

    def opened(home: str | Path) -> ImageData:
        return open_dataset(
            dataset_dir, home, modality, info["resolution"], info["seed"], layout, patient_pattern, drop_duplicates
        )

    home = splits_home(models_dir, output_dir)
    try:
        data = opened(home)
    except DataError:
        if home == Path(output_dir):
            raise
        data = opened(output_dir)  # not the images of the training, whose split file is in its folder
    mine = {"class_names": list(data.class_names), "channels": data.modality.channels}
    mine["preprocessing"] = data.modality.preprocessing
    for key, value in mine.items():
        if key in info and info[key] != value:
            raise InversionError(
                f"{key} of the images is {value}, that of the generator in {models_dir} {info[key]}. Name images of "
                f"the same kind and classes, or the models that were trained for them."
            )
    if data.split_sha256 != models.split_sha256:
        print("These are not the images of the generator's training, or other splits: no image counts as seen by it.")
    return data


class Inversion:
    """Inverts all images of a data set and writes ``private/latents.pt`` and ``private/pairs.png``.

    Images are inverted in parts of ``batch_size`` in the order of their names. The result of each part is kept until
    the last one is done, so that an interrupted run resumes, to the same bits. A complete file is not made again.

    Args:
        models: ``generator`` and ``encoder``.
        data: images to invert, see `open_images`.
        output_dir: folder whose subfolder ``private`` receives the files.
        settings: steps and weights of the descent.
        batch_size: images that are descended at once.
        squeezenet_file: file of the SqueezeNet 1.1 weights; None for those of torchvision.

    Raises:
        InversionError: there is no image, or the folder holds other latents; the latter by `run`.
        TrunkUnavailable: by `run`, if the SqueezeNet weights are not available.
        InUseError: by `run`, if another run works in the folder.
    """

    def __init__(
        self,
        models: ModelSet,
        data: ImageData,
        output_dir: str,
        settings: InversionSettings,
        batch_size: int = 16,
        squeezenet_file: str | None = None,
    ) -> None:
        self.models, self.data = models, data
        self.private = Path(output_dir) / "private"
        self.settings, self.batch_size, self.squeezenet_file = settings, batch_size, squeezenet_file
        self.records = data.records(SPLITS)
        if not self.records:
            raise InversionError("There is no image to invert. Name a folder of images as --dataset_dir.")
        splits = {record.name: split for split in SPLITS for record in data.records(split)}
        self.splits = [splits[record.name] for record in self.records]
        self.labels = torch.tensor([record.label for record in self.records], dtype=torch.int64)
        #: What the latents depend on besides images and generator.
        self.depends = {
            **asdict(settings),
            "batch_size": batch_size,
            "encoder_sha256": models.infos["encoder"]["sha256"],
            "preprocessing": data.modality.preprocessing,
            "resolution": data.resolution,
        }

    @property
    def path(self) -> Path:
        """File of the latents."""
        return self.private / LATENTS

    def run(self) -> RealLatents:
        """Inverts the images that no earlier run has inverted, writes the files and returns the latents."""
        with run_lock(self.private.parent, self.private / "inversion.lock"):
            sweep_temporary(self.private)
            latents = self._complete()
            if latents is not None:
                print(f"{self.path} is complete. Nothing to invert.")
            else:
                latents = self._invert()
                self._draw_pairs(latents)
                save_latents(self.path, latents)
                print(f"{_summary(latents)}\nNot to be shared: {self.private}")
            shutil.rmtree(self.private / PARTS, ignore_errors=True)
            return latents

    def _complete(self) -> RealLatents | None:
        """Returns the latents of an earlier run; None if there are none."""
        if not self.path.exists():
            return None
        latents = load_latents(self.path, self.models.infos["generator"]["sha256"])
        changed = [
            f"{name} = {latents.settings.get(name)!r}, now it is {value!r}"
            for name, value in self.depends.items()
            if latents.settings.get(name) != value
        ]
        if latents.digests != self.data.digests(SPLITS) or latents.split_sha256 != self.data.split_sha256:
            changed.append("other images or splits")
        if changed:
            raise InversionError(
                f"{self.path} was made with {'; '.join(changed)}. Give the old values, or another output_dir."
            )
        return latents

    def _invert(self) -> RealLatents:
        encoder = self.models.networks["encoder"]
        assert isinstance(encoder, Encoder)
        inverter = Inverter(self.models.generator, encoder, self.settings, self.squeezenet_file)
        digests = self.data.digests(SPLITS)
        generator_sha256 = str(self.models.infos["generator"]["sha256"])
        # Parts of other options or images must not be taken for those of this run.
        name = content_digest([self.depends, digests, self.labels.tolist(), generator_sha256])
        steps = Steps(private_folder(self.private / PARTS) / name)
        engine = StepEngine("inverting")
        engine.steps = [
            self._part(steps, inverter, number, indices)
            for number, indices in enumerate(torch.arange(len(self.records)).split(self.batch_size))
        ]
        engine.run()
        found = [step.result() for step in engine.steps]
        w, perceived, pixels = (torch.cat([part[key] for part in found]) for key in ("w", "lpips", "pixels"))
        return RealLatents(
            w,
            perceived,
            pixels,
            self.labels.tolist(),
            [record.patient_id for record in self.records],
            digests,
            self.splits,
            self.data.split_sha256,
            generator_sha256,
            list(self.data.class_names),
            self.depends,
        )

    def _part(self, steps: Steps, inverter: Inverter, number: int, indices: Tensor) -> Step:
        def compute() -> Tensors:
            images = self.data.load([self.records[index] for index in indices.tolist()])
            return inverter(torch.as_tensor(images), self.labels[indices])

        return steps.step(f"part_{number:05d}", float(len(indices)), compute)

    def _draw_pairs(self, latents: RealLatents) -> None:
        """Writes images above their inversions: of the training in the first two rows, and others in the last two."""
        groups = [latents.indices(("train", "extra")), latents.indices(("val", "test"))]
        groups = [spread_out(group, PAIRS) for group in groups if group]
        columns = min(map(len, groups))
        rows, names = [], []
        for group in groups:
            chosen = group[:columns]
            originals = self.data.load([self.records[index] for index in chosen])
            rows += [torch.as_tensor(originals), synthesise(self.models.generator, latents.w[chosen])]
            names += [latents.splits[chosen[0]], "inverted"]
        save_png(image_grid(torch.cat(rows), columns, names), self.private / "pairs.png")


def _summary(latents: RealLatents) -> str:
    return (
        f"{len(latents.w)} images inverted. Means: LPIPS to the inversion {float(latents.lpips.mean()):.3f}, root mean "
        f"squared error of the pixels {float(latents.pixels.mean()):.3f}."
    )
