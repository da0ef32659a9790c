# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Images of other people, several of each, from which the audit networks learn to recognise a patient in other images.

Only the audit's networks see them. Patients who also occur in the data set that is audited are left out.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import ConcatDataset, Dataset

from bundle.data import DataError, DatasetDir, ImageData, open_dataset
from bundle.data.dataset import IDENTITY_SPLITS
from bundle.data.records import SPLITS
from bundle.metrics.reidentification import same_images

__all__ = ["audit_dataset", "open_pairs", "without_shared_patients"]

logger = logging.getLogger(__name__)


def open_pairs(
    pairs_dir: DatasetDir, output_dir: str | Path, data: ImageData, layout: str | Mapping[str, Any], seed: int
) -> ImageData | None:
    """Opens the images of other people at the resolution and with the preprocessing of the data set.

    Args:
        pairs_dir: folder or folders of the images, in one of the layouts of `bundle.data.layouts.LAYOUTS`; "" for none.
        output_dir: output folder of the training; its subfolder ``pairs`` stores the split file of these images.
        data: data set that is audited.
        layout: layout of pairs_dir, see `bundle.data.open_dataset`.
        seed: random seed of the splits, used where the images define none.

    Returns:
        The images without the patients of `without_shared_patients`; None without pairs_dir.

    Raises:
        DataError: the images cannot be used, or no patients to train on or none that are held out are left.
    """
    if not pairs_dir:
        return None
    home = Path(output_dir) / "pairs"
    pairs = open_dataset(pairs_dir, home, data.modality, data.resolution, seed, layout)
    pairs = without_shared_patients(pairs, data)
    for splits, use in ((IDENTITY_SPLITS, "to train on"), (("val", "test"), "that are held out")):
        if not pairs.records(splits):
            raise DataError(
                f"--pairs_dir: no patients {use} ({' and '.join(splits)}) are left besides those of --dataset_dir. "
                "Name images of other people, or leave --pairs_dir out."
            )
    return pairs


def without_shared_patients(pairs: ImageData, data: ImageData) -> ImageData:
    """Returns the images of people who do not occur in a data set, and logs how many do.

    A person counts as the same if any two images are: public collections take images from each other, at another size
    and under another name. A person of whom the two hold different images goes unnoticed.

    Args:
        pairs: images of other people.
        data: the data set; at the same resolution, with the same preprocessing.
    """
    records = pairs.records(SPLITS)
    same = same_images(pairs.load(records), data.load(data.records(SPLITS)))
    shared = {record.patient_id for record, is_shared in zip(records, same.tolist(), strict=True) if is_shared}
    if not shared:
        return pairs
    logger.warning(
        "%d of %d people are left out: the data set that the networks are trained on has images of theirs as well.",
        len(shared),
        len({record.patient_id for record in records}),
    )
    return pairs.without_patients(shared)


def audit_dataset(data: ImageData, pairs: ImageData | None) -> Dataset[Any]:
    """Returns the images that the audit networks are trained on: those of the data set, then those of other people."""
    if pairs is None:
        return data.dataset(IDENTITY_SPLITS)
    return ConcatDataset([part.dataset(IDENTITY_SPLITS) for part in (data, pairs)])
