# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Opens a folder of real images as a checked data set with labels, patients and splits."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence
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

#: Splits whose patients get an identity index: those that the GAN and the identity networks are trained on.
IDENTITY_SPLITS = ("train", "extra")


class ImageData:
    """Real images with labels, patients and splits.

    Args:
        records: records of all images.
        splits: assignment of the images to splits.
        modality: preset of the kind of image.
        class_names: name of each label in this data set.
        resolution: side of the square images in pixels.
        digests: SHA-256 of each image's decoded pixels, by image name.

    Attributes:
        split_sha256: SHA-256 of the split file, which records the content, label, patient and split of every image.
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
        self._test = "test"
        patients = {record.patient_id for record in self.records(IDENTITY_SPLITS)}
        self._identities = {patient: index for index, patient in enumerate(sorted(patients))}

    @property
    def n_identities(self) -> int:
        """Number of patients in train and extra: the classes of an identity network."""
        return len(self._identities)

    def records(self, splits: str | Sequence[str]) -> list[Record]:
        """Returns the records of one or more splits, sorted by name.

        Raises:
            DataError: a split is not one of :data:`bundle.data.records.SPLITS`.
        """
        wanted = (splits,) if isinstance(splits, str) else tuple(splits)
        unknown = sorted(set(wanted) - set(SPLITS))
        if unknown:
            raise DataError(f"unknown split {unknown[0]!r}; the splits are {', '.join(SPLITS)}")
        wanted = tuple(self._test if split == "test" else split for split in wanted)
        return [record for record in self._records if self._splits.split_of[record.name] in wanted]

    def judged_by(self, split: str) -> ImageData:
        """Returns the same data with the images of another split in the place of the test images, which are left out.

        Settings are chosen on such data, so that the test images remain unseen.
        """
        view = copy.copy(self)
        view._test = split
        return view

    def identity(self, record: Record) -> int:
        """Returns the index of the record's patient among the sorted patients of train and extra, -1 for others."""
        return self._identities.get(record.patient_id, -1)

    def digests(self, splits: str | Sequence[str]) -> list[str]:
        """Returns the SHA-256 of the decoded pixels of one or more splits' images, in the order of :meth:`records`."""
        return [self._digests[record.name] for record in self.records(splits)]

    def content_sha256(self, splits: str | Sequence[str]) -> str:
        """Returns a SHA-256 of the preprocessing and of the pixels of one or more splits, grouped by patient.

        It does not depend on the names of files, folders and patients: a copy of the data set has the same hash.
        """
        patients: dict[str, list[str]] = {}
        for record in self.records(splits):
            patients.setdefault(record.patient_id, []).append(self._digests[record.name])
        content = sorted(sorted(digests) for digests in patients.values())
        return hashlib.sha256(json.dumps([self.modality.preprocessing, content]).encode()).hexdigest()

    def with_preprocessing(self, preprocessing: str) -> ImageData:
        """Returns the same images and splits with another one of :data:`bundle.data.transforms.PREPROCESSINGS`."""
        view = copy.copy(self)
        view.modality = replace(self.modality, preprocessing=preprocessing)
        return view

    def without_patients(self, patients: Collection[str]) -> ImageData:
        """Returns the same images and splits without those of some patients."""
        records = [record for record in self._records if record.patient_id not in patients]
        return ImageData(records, self._splits, self.modality, self.class_names, self.resolution, self._digests)

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
        """Returns the images of the given records, float32 [N, C, resolution, resolution] in [-1, 1]; N may be 0."""
        dataset = self._dataset(records, progress)
        images = [dataset[index]["image"] for index in range(len(dataset))]
        shape = (0, self.modality.channels, self.resolution, self.resolution)
        return torch.stack(images) if images else torch.empty(shape)

    def tensors(self, splits: str | Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns images, labels and identities of one or more splits as tensors, in the order of :meth:`records`.

        Returns:
            images float32 [N, C, resolution, resolution] in [-1, 1], labels int64 [N], and identities int64 [N] (see
            :meth:`identity`); N may be 0.
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
    """Checks every image in a folder of real images and opens the folder as a data set.

    Files that are left out, and other findings that are no errors, are logged as warnings.

    Args:
        dataset_dir: path of the folder, or of several, in one of the layouts of :data:`bundle.data.layouts.LAYOUTS`.
        output_dir: output folder; its subfolder ``private`` stores the split file and the results of the check, so that
            unchanged files are not decoded again.
        modality: preset of the kind of image, or its name.
        resolution: side of the square images in pixels.
        seed: random seed of the splits, used where the data set defines none.
        layout: see :func:`bundle.data.layouts.read_folder`.
        patient_pattern: see :func:`bundle.data.layouts.read_folder`; None for the value stored in the split file.
        drop_duplicates: see :func:`bundle.data.checks.check_dataset`; None for the value stored in the split file.

    Raises:
        DataError: the data cannot be used; the message lists each problem, its place and its cure.
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
    """Opens a data set that has just been checked, and writes its split file if there is none yet.

    Args:
        report: result of the check.
        output_dir: output folder; its subfolder ``private`` stores the split file.
        modality: preset of the kind of image, or its name.
        resolution: side of the square images in pixels.
        seed: random seed of the splits, used where the data set defines none.

    Raises:
        DataError: the check found problems, or the splits cannot be settled.
    """
    if report.problems:
        raise DataError(report.problems)
    inventory = report.inventory
    splits = resolve_splits(inventory, private_dir(output_dir) / "splits.json", seed)
    preset = get_modality(modality)
    return ImageData(inventory.records, splits, preset, inventory.class_names, resolution, inventory.digests)
