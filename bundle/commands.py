# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Types and bounds of each command's options, one model per command; the defaults are in its configuration file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, ValidationInfo

import bundle.options
from bundle.auditing.preprocessing import PREPROCESSING
from bundle.auditing.resampling import LEAST
from bundle.cohort.formats import formats_problem
from bundle.data import LAYOUTS, MODALITIES, Modality
from bundle.data.patients import pattern_problem
from bundle.latent.centroids import METHODS
from bundle.latent.pairs import ENDS
from bundle.networks.latent_guides import LATENT_GUIDES
from bundle.option_types import (
    Count,
    Device,
    File,
    Folder,
    Folders,
    Integer,
    OptionalFilePath,
    OptionalFolder,
    OutputFolder,
    Positive,
    RequiredFile,
    RequiredFolder,
    RequiredFolders,
    Seed,
    Seeds,
    Unsigned,
    one_of,
    refuse,
)
from bundle.options import Options
from bundle.training.discriminators import DISCRIMINATORS

__all__ = ["COMMANDS", "check_options"]


def _without(problem_of: Callable[[Any], str | None]) -> AfterValidator:
    """Returns a validator that refuses values of which the function returns a problem."""

    def check(value: Any) -> Any:
        if problem := problem_of(value):
            raise refuse(problem)
        return value

    return AfterValidator(check)


Pattern = Annotated[Any, _without(lambda value: None if value is None else pattern_problem(value))]
Formats = Annotated[Any, _without(formats_problem)]

Layout = Annotated[
    Any,
    one_of(("auto", *LAYOUTS), Mapping, "the columns of a table, as in {'image': 'id_code', 'label': 'diagnosis'}"),
]
ModalityName = Annotated[
    Any, one_of(tuple(MODALITIES), Modality, "a configuration file that describes one, as docs/data.md shows")
]
Resolution = Annotated[int, one_of((32, 64, 128, 256, 512))]
Points = Annotated[int, Field(ge=3)]
Shadows = Annotated[int, one_of(tuple(range(4, 257, 2)))]
Discriminator = Annotated[str, one_of(("auto", *DISCRIMINATORS))]
Kimg = Annotated[float, Field(ge=0.001, allow_inf_nan=False)]
# Fewest cases that are reported; see bundle.auditing.resampling.
Reported = Annotated[int, Field(ge=LEAST, le=1000)]


class Command(Options):
    """Options of every command."""

    former_options: ClassVar = {
        "projection_file": "it is called --resnet18_file now.",
        "trunk_file": "it is called --squeezenet_file now.",
    }

    bundle_root: str
    modality: ModalityName
    output_dir: OutputFolder
    save_execute_config: Any


class Tracked(Command):
    """Options of a command whose run is recorded by MLflow."""

    device: Device
    tracking_uri: str
    experiment_name: str
    run_name: str | None
    is_not_rank0: bool


class RealImagesOptions(Options):
    """Options of a command that reads real images and may have to split them."""

    dataset_dir: RequiredFolders
    layout: Layout
    patient_pattern: Pattern
    drop_duplicates: bool | None


class CheckData(Command, RealImagesOptions):
    """Options of configs/check_data.json."""

    resolution: Resolution
    seed: Seed


class TrainGan(Tracked, RealImagesOptions):
    """Options of configs/train_gan.json."""

    resolution: Resolution
    total_kimg: Kimg
    batch_size: Count
    init_from: File
    seed: Seed
    amp: bool
    squeezenet_file: File
    discriminator: Discriminator
    resnet18_file: File
    learning_rate: Positive
    discriminator_learning_rate: Positive
    r1_gamma: Unsigned
    variety: Unsigned
    calibrate: bool
    draw_extra: bool
    ema_kimg: Positive
    augment: Annotated[str, one_of(("adaptive", "fixed"))]
    augment_p: Annotated[float, Field(ge=0, le=1)]
    augment_target: Annotated[float, Field(gt=-1, lt=1)]
    augment_kimg: Positive
    measure_kimg: Positive
    epoch_kimg: Positive
    epoch_length: Count


class TrainGuides(Tracked, RealImagesOptions):
    """Options of configs/train_guides.json."""

    init_from: OptionalFolder
    resolution: Resolution
    max_epochs: Count
    gate_epochs: Count
    class_epochs: Count
    batch_size: Count
    seed: Seed
    learning_rate: Positive
    class_learning_rate: Positive
    resnet18_file: File
    squeezenet_file: File
    efficientnet_file: File
    nobody: Annotated[float, Field(ge=0, le=1)]


class TrainAudit(Tracked, RealImagesOptions):
    """Options of configs/train_audit.json."""

    pairs_dir: Folders
    pairs_layout: Layout
    init_from: OptionalFolder
    resolution: Resolution
    max_epochs: Count
    batch_size: Count
    seed: Seed
    learning_rate: Positive


class TrainLatentGuides(Tracked):
    """Options of configs/train_latent_guides.json."""

    models_dir: Folder
    students: Annotated[str, one_of(("all", *LATENT_GUIDES))]
    n_latents: Count
    n_visited: Count
    rounds: Integer
    lambda_class: Unsigned
    lambda_prior: Unsigned
    lambda_real: Unsigned
    max_epochs: Count
    batch_size: Count
    seed: Seed
    learning_rate: Positive


class TrainEncoder(Tracked):
    """Options of configs/train_encoder.json."""

    dataset_dir: RequiredFolders
    layout: Layout
    models_dir: Folder
    max_epochs: Count
    batch_size: Annotated[int, Field(ge=2, le=100_000)]
    real_share: Annotated[float, Field(gt=0, lt=1)]
    lambda_delta: Unsigned
    seed: Seed
    learning_rate: Positive
    squeezenet_file: File


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


class Inference(Tracked):
    """Options of configs/inference.json."""

    dataset_dir: Any
    checkpoint: RequiredFile
    n_images: Count
    batch_size: Count
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
    n_shadows: Shadows
    max_epochs: Count
    long_points: Points
    long_pairs: Count
    published_pairs: Integer
    squeezenet_file: File


class Score(Command):
    """Options of configs/score.json."""

    device: Device
    dataset_dir: RequiredFolders
    layout: Layout
    models_dir: Folder
    n_seeds: Count
    squeezenet_file: File


#: Model of each command, by the name that configurations use.
COMMANDS: dict[str, type[Options]] = {
    "audit": Audit,
    "check_data": CheckData,
    "evaluate": Evaluate,
    "export": Export,
    "generate": Generate,
    "inference": Inference,
    "invert": Invert,
    "score": Score,
    "train_audit": TrainAudit,
    "train_encoder": TrainEncoder,
    "train_gan": TrainGan,
    "train_guides": TrainGuides,
    "train_latent_guides": TrainLatentGuides,
}


def check_options(command: str) -> dict[str, Any]:
    """Rejects options that do not exist or have invalid values; the first expression of every run id.

    Args:
        command: one of `COMMANDS`.

    Returns:
        See `bundle.options.check_options`.

    Raises:
        OptionError: see `bundle.options.check_options`.
    """
    return bundle.options.check_options(COMMANDS[command])
