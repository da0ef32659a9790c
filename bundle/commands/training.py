# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Options of the commands that train networks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from bundle.commands.common import Discriminator, Kimg, Layout, RealImagesOptions, Resolution, Tracked
from bundle.networks.latent_guides import LATENT_GUIDES
from bundle.option_types import (
    Count,
    File,
    Folder,
    Folders,
    Integer,
    OptionalFolder,
    Positive,
    RequiredFolders,
    Seed,
    Unsigned,
    one_of,
)

__all__ = ["TrainAudit", "TrainEncoder", "TrainGan", "TrainGuides", "TrainLatentGuides"]


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
    kappa: Unsigned
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
