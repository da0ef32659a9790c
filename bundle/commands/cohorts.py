# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Options of the commands that make cohorts, or what a cohort is made from, and that pass them on."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, ValidationInfo

from bundle.commands.common import Command, Formats, Layout, OptionalFormats, Points, RealImagesOptions, Tracked
from bundle.latent.centroids import METHODS
from bundle.latent.pairs import ENDS
from bundle.option_types import (
    Count,
    Device,
    File,
    Folder,
    Folders,
    OptionalFilePath,
    OptionalFolder,
    OutputFolder,
    Positive,
    RequiredFile,
    RequiredFolder,
    Seed,
    Unsigned,
    one_of,
    refuse,
)
from bundle.options import Options
from bundle.pacs.addresses import AETitle, OptionalAETitle, OptionalHost, OptionalUrl, Port

__all__ = ["Export", "Generate", "Inference", "Invert", "Release", "Send"]


class Invert(Command, RealImagesOptions):
    """Options of configs/invert.json."""

    models_dir: Folder
    steps: Annotated[int, Field(ge=0, le=100_000)]
    learning_rate: Positive
    lambda_prior: Unsigned
    batch_size: Count
    seed: Seed
    squeezenet_file: File
    device: Device


def _of_ksame(value: Any, info: ValidationInfo) -> Any:
    """Refuses options of k-same without it, where they would do nothing, and k-same without them."""
    if "ends" not in info.data:  # it is refused itself
        return value
    is_ksame = info.data["ends"] == "ksame"
    if value not in (None, METHODS[0]) and not is_ksame:
        raise refuse("is an option of k-same: give --ends ksame as well, or leave it out.")
    if value is None and is_ksame:
        raise refuse(_REQUIRED_OF_KSAME[str(info.field_name)])
    return value


_REQUIRED_OF_KSAME = {
    "k": "must be given with --ends ksame: the smallest number of patients behind a centroid, at least 2.",
    "latents": "must be given with --ends ksame: the file private/latents.pt that configs/invert.json writes of the "
    "images of the generator's training (docs/inversion.md).",
}


class Generate(Tracked):
    """Options of configs/plan.json."""

    former_options: ClassVar = {
        **Tracked.former_options,
        "objective": "for the published algorithm, name configs/published.json behind configs/plan.json.",
    }

    n_images: Count | None
    n_points: Points
    seed: Seed
    classes: Any
    ends: Annotated[str, one_of(ENDS)]
    k: Annotated[Annotated[int, Field(ge=2)] | None, AfterValidator(_of_ksame)]
    method: Annotated[str, one_of(METHODS), AfterValidator(_of_ksame)]
    latents: Annotated[OptionalFilePath, AfterValidator(_of_ksame)]
    formats: Formats
    guides: Annotated[str, one_of(("latent", "image"))]
    lambda_class: Unsigned
    lambda_prior: Unsigned
    lambda_real: Unsigned
    kappa: Unsigned
    models_dir: Folder
    dataset_dir: Folders
    layout: Layout
    squeezenet_file: File


class Export(Options):
    """Options of configs/export.json."""

    bundle_root: str
    cohort_dir: RequiredFolder
    formats: Formats
    save_execute_config: Any


class Send(Options):
    """Options of configs/send.json."""

    bundle_root: str
    cohort_dir: RequiredFolder
    audit_dir: OptionalFolder
    unaudited: bool
    aet: OptionalAETitle
    host: OptionalHost
    port: Port
    calling_aet: AETitle
    url: OptionalUrl
    tls: bool
    ca_file: File
    retries: Annotated[int, Field(ge=0, le=100)]
    confirm: bool
    output_dir: OutputFolder
    save_execute_config: Any


class Release(Options):
    """Options of configs/release.json."""

    bundle_root: str
    cohort_dir: RequiredFolder
    review: File
    audit_dir: OptionalFolder
    unreviewed: bool
    formats: OptionalFormats
    page: OptionalFilePath
    output_dir: OutputFolder
    save_execute_config: Any


class Inference(Tracked):
    """Options of configs/inference.json."""

    dataset_dir: Any
    checkpoint: RequiredFile
    n_images: Count
    batch_size: Count
    seed: Seed
