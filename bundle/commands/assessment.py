# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Options of the commands that look at data, networks and cohorts."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo

from bundle.auditing.preprocessing import PREPROCESSING
from bundle.auditing.resampling import LEAST
from bundle.commands.common import (
    Command,
    Discriminator,
    Kimg,
    Layout,
    Points,
    RealImagesOptions,
    Reported,
    Resolution,
    Shadows,
    Tracked,
)
from bundle.option_types import (
    Count,
    Device,
    File,
    Folder,
    Folders,
    Integer,
    RequiredFolder,
    RequiredFolders,
    Seed,
    Seeds,
    Unsigned,
    one_of,
    refuse,
)

__all__ = ["Audit", "BlindReading", "CheckData", "Evaluate", "Score"]


class CheckData(Command, RealImagesOptions):
    """Options of configs/check_data.json."""

    resolution: Resolution
    seed: Seed


def _of_one_cohort(remove: bool, info: ValidationInfo) -> bool:
    cohort_dir = info.data.get("cohort_dir")
    if remove and isinstance(cohort_dir, list | tuple) and len(cohort_dir) > 1:
        raise refuse("writes a cohort anew and needs a single cohort_dir. Audit the releases one by one for that.")
    return remove


class Audit(Tracked, RealImagesOptions):
    """Options of configs/audit.json."""

    cohort_dir: RequiredFolders
    models_dir: Folder
    cohort_preprocessing: Annotated[str, one_of(PREPROCESSING)]
    remove_flagged: Annotated[bool, AfterValidator(_of_one_cohort)]
    resolution: Resolution
    seed: Seed
    squeezenet_file: File
    deep: bool
    n_shadows: Annotated[int, Field(ge=2, le=256)]
    shadow_resolution: Resolution
    shadow_kimg: Kimg
    shadow_samples: Annotated[int, Field(ge=LEAST, le=100_000)]
    shadow_discriminator: Discriminator
    resnet18_file: File
    n_canaries: Reported
    deep_controls: bool
    inversion_images: Reported
    inversion_steps: Annotated[int, Field(ge=1, le=10_000)]
    inversion_starts: Annotated[int, Field(ge=1, le=16)]


class Evaluate(Tracked):
    """Options of configs/evaluate.json."""

    dataset_dir: RequiredFolders
    layout: Layout
    external_dir: Folders
    external_layout: Layout
    models_dir: Folder
    audit_dir: Folder
    n_images: Count | None
    n_points: Points
    seeds: Seeds
    lambda_class: Unsigned
    lambda_prior: Unsigned
    lambda_real: Unsigned
    kappa: Unsigned
    n_shadows: Shadows
    max_epochs: Count
    long_points: Points
    long_pairs: Count
    published_pairs: Integer
    squeezenet_file: File


class BlindReading(Command):
    """Options of configs/blind_reading.json."""

    cohort_dir: RequiredFolder
    dataset_dir: RequiredFolders
    layout: Layout
    models_dir: Folder
    n_images: Count
    seed: Seed


class Score(Command):
    """Options of configs/score.json."""

    device: Device
    dataset_dir: RequiredFolders
    layout: Layout
    models_dir: Folder
    n_seeds: Count
    squeezenet_file: File
