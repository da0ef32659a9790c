# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Determines how the images of a cohort were preprocessed before they were written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from bundle.auditing.images import Cohort, read_pixels
from bundle.data import DataError, ImageData, Modality
from bundle.data.records import Record
from bundle.figures import from_uint8

__all__ = ["PREPROCESSING", "choose_preprocessing"]

#: State of the cohort's images. "applied": they are already preprocessed like the real images that networks see, as
#: cohorts of this bundle are; "none": they look like the files in dataset_dir and are preprocessed like these; "auto":
#: see `choose_preprocessing`.
PREPROCESSING = ("auto", "applied", "none")

# Images of each side that are compared to determine the preprocessing.
SAMPLE = 200


def choose_preprocessing(
    cohort: Cohort,
    data: ImageData,
    chosen: str,
    distance: Callable[[Tensor, Tensor], float],
) -> tuple[Modality, str]:
    """Determines how the images of a cohort have to be preprocessed.

    Args:
        cohort: synthetic images, possibly with a manifest.
        data: real images, at the resolution of the audit.
        chosen: one of `PREPROCESSING`. "auto" relies on the manifest if it names the modality's preprocessing, and
            otherwise tests whether the images are closer to preprocessed or to unprocessed training images.
        distance: function that returns the distance between two sets of images [N, C, H, W] in [-1, 1].

    Returns:
        The preset for reading the cohort's images, and the reason for this choice, in words.

    Raises:
        DataError: several releases were preprocessed in different ways, and nothing else was chosen.
    """
    modality = data.modality
    plain = replace(modality, preprocessing="plain")
    if modality.preprocessing == "plain":
        return modality, "since this modality has none"
    if chosen != "auto":
        return (plain if chosen == "applied" else modality), "as the option cohort_preprocessing says"
    if cohort.releases and cohort.manifest.get("preprocessing", "") is None:
        raise DataError(
            "Some releases say in their manifests how they were preprocessed, others do not or differ. Give "
            "--cohort_preprocessing applied or none if it is the same for all, or audit them separately."
        )
    if cohort.manifest.get("preprocessing") == modality.preprocessing:
        return plain, "as the cohort's manifest says"

    def read(records: Sequence[Record], preset: Modality) -> Tensor:
        paths = [record.image for record in records[:: max(1, len(records) // SAMPLE)]][:SAMPLE]
        return from_uint8(read_pixels(paths, preset, data.resolution, "a sample"))

    images, train = read(cohort.records, plain), data.records("train")
    as_seen, as_filed = (distance(images, read(train, preset)) for preset in (modality, plain))
    best = plain if as_seen <= as_filed else modality
    return best, "by whether its images look more like preprocessed training images or like their files"
