# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The one door to a folder of real images."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from monai.data import CacheDataset, Dataset

from bundle.data.checks import CheckReport, check_dataset, private_dir
from bundle.data.errors import DataError
from bundle.data.layouts import DatasetDir
from bundle.data.modality import Modality, get_modality
from bundle.data.records import SPLITS, Record
from bundle.data.splits import Splits, resolve_splits
from bundle.data.transforms import image_transform

__all__ = ["ImageData", "open_checked", "open_dataset"]

logger = logging.getLogger(__name__)

#: Splits whose patients get an identity: what the GAN and the identity networks see.
IDENTITY_SPLITS = ("train", "extra")


class ImageData:
    """Real images with labels, patients and splits.

    Args:
        records: all images.
        splits: which image belongs to which split.
        modality: preset.
        class_names: the name of each label as this data set uses them.
        resolution: side of the square images in pixels.
        digests: SHA-256 of each image's decoded pixels, by name.

    Attributes:
        modality: preset.
        resolution: side of the square images in pixels.
        class_names: the name of each label.
        split_sha256: SHA-256 of the split file, which tells every image's content, label, patient and split.
    """

    def __init__(
        self,
        records: Sequence[Record],
        splits: Splits,
        modality: Modality,
        class_names: Sequence[str],
        resolution: int,
        digests: Mapping[str, str],
    ) -> None:
        self.modality = modality
        self.resolution = resolution
        self.class_names = tuple(class_names)
        self.split_sha256 = splits.sha256
        self._records = sorted(records, key=lambda record: record.name)
        self._splits = splits
        self._digests = digests
        patients = {record.patient_id for record in self.records(IDENTITY_SPLITS)}
        self._identities = {patient: index for index, patient in enumerate(sorted(patients))}

    @property
    def n_identities(self) -> int:
        """Number of patients in train and extra: the classes of an identity network."""
        return len(self._identities)

    def records(self, splits: str | Sequence[str]) -> list[Record]:
        """Returns the records of one or more splits, sorted by name.

        Raises:
            DataError: no such split.
        """
        wanted = (splits,) if isinstance(splits, str) else tuple(splits)
        unknown = sorted(set(wanted) - set(SPLITS))
        if unknown:
            raise DataError(f"unknown split {unknown[0]!r}; the splits are {', '.join(SPLITS)}")
        return [record for record in self._records if self._splits.split_of[record.name] in wanted]

    def identity(self, record: Record) -> int:
        """Returns the index of the record's patient among the sorted patients of train and extra, -1 for others."""
        return self._identities.get(record.patient_id, -1)

    def digests(self, splits: str | Sequence[str]) -> list[str]:
        """Returns the SHA-256 of the decoded pixels of one or more splits' images, in the order of :meth:`records`."""
        return [self._digests[record.name] for record in self.records(splits)]

    def content_sha256(self, splits: str | Sequence[str]) -> str:
        """Returns a hash of what the images of one or more splits show, and of which are of one patient.

        Names of files, patients and folders are not in it: the same images elsewhere have the same hash.
        """
        patients: dict[str, list[str]] = {}
        for record in self.records(splits):
            patients.setdefault(record.patient_id, []).append(self._digests[record.name])
        content = sorted(sorted(digests) for digests in patients.values())
        return hashlib.sha256(json.dumps([self.modality.preprocessing, content]).encode()).hexdigest()

    def with_preprocessing(self, preprocessing: str) -> ImageData:
        """Returns the same images and splits under another of :data:`bundle.data.transforms.PREPROCESSINGS`."""
        modality = replace(self.modality, preprocessing=preprocessing)
        return ImageData(self._records, self._splits, modality, self.class_names, self.resolution, self._digests)

    def dataset(self, splits: str | Sequence[str]) -> Dataset:
        """Returns the images of one or more splits, in the order of :meth:`records`, decoded once and kept in memory.

        Returns:
            MONAI dataset of dictionaries: image float32 [C, resolution, resolution] in [-1, 1], label int, identity int
            (see :meth:`identity`), split str.
        """
        return self._dataset(self.records(splits), progress=True)

    def _dataset(self, records: Sequence[Record], progress: bool) -> Dataset:
        items = [
            {
                "image": str(record.image),
                "label": record.label,
                "identity": self.identity(record),
                "split": self._splits.split_of[record.name],
            }
            for record in records
        ]
        transform = image_transform(self.modality, self.resolution)
        return CacheDataset(items, transform, num_workers=min(8, os.cpu_count() or 1), progress=progress)

    def load(self, records: Sequence[Record], progress: bool = False) -> torch.Tensor:
        """Returns the images of some records, float32 [N, C, resolution, resolution] in [-1, 1]; N may be 0."""
        dataset = self._dataset(records, progress)
        images = [dataset[index]["image"] for index in range(len(dataset))]
        shape = (0, self.modality.channels, self.resolution, self.resolution)
        return torch.stack(images) if images else torch.empty(shape)

    def tensors(self, splits: str | Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns one or more splits as whole tensors, in the order of :meth:`records`.

        Returns:
            images float32 [N, C, resolution, resolution] in [-1, 1], labels int64 [N], identities int64 [N];
            N may be 0.
        """
        records = self.records(splits)
        labels = torch.tensor([record.label for record in records], dtype=torch.int64)
        identities = torch.tensor([self.identity(record) for record in records], dtype=torch.int64)
        return self.load(records, progress=True), labels, identities


def open_dataset(
    dataset_dir: DatasetDir,
    output_dir: str | Path,
    modality: str | Modality = "xray",
    resolution: int = 64,
    seed: int = 0,
    layout: str | Mapping[str, Any] = "auto",
    patient_pattern: str | None = None,
    drop_duplicates: bool | None = None,
) -> ImageData:
    """Opens a folder of real images after every one of them has been checked.

    What is left out of the folder, and what else is worth knowing about it, is logged as warnings.

    Args:
        dataset_dir: the folder, or several, in any of the layouts of :data:`bundle.data.layouts.LAYOUTS`.
        output_dir: its folder ``private`` keeps the split file and what the check has seen, so that the next
            check is quick.
        modality: preset, or its name.
        resolution: side of the square images in pixels.
        seed: of the splits, where they have to be drawn.
        layout: see :func:`bundle.data.layouts.read_folder`.
        patient_pattern: see :func:`bundle.data.layouts.read_folder`; None for what the split file keeps.
        drop_duplicates: see :func:`bundle.data.checks.check_dataset`; None for what the split file keeps.

    Raises:
        DataError: the data cannot be used; lists what is wrong, where, and the cure.
    """
    report = check_dataset(
        dataset_dir,
        output_dir,
        modality,
        layout,
        seed,
        patient_pattern=patient_pattern,
        drop_duplicates=drop_duplicates,
    )
    for note in report.notes:
        logger.warning("%s", note)
    return open_checked(report, output_dir, modality, resolution, seed)


def open_checked(
    report: CheckReport, output_dir: str | Path, modality: str | Modality, resolution: int, seed: int
) -> ImageData:
    """Opens a data set that has just been checked; settles and keeps its splits.

    Args:
        report: what the check has found.
        output_dir: its folder ``private`` keeps the split file.
        modality: preset, or its name.
        resolution: side of the square images in pixels.
        seed: seed of the splits, where they have to be drawn.

    Raises:
        DataError: the data cannot be used.
    """
    if report.problems:
        raise DataError(report.problems)
    inventory = report.inventory
    splits = resolve_splits(inventory, private_dir(output_dir) / "splits.json", seed)
    preset = get_modality(modality)
    return ImageData(inventory.records, splits, preset, inventory.class_names, resolution, inventory.digests)
