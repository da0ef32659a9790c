# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Types and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from bundle.auditing.resampling import LEAST
from bundle.cohort.formats import formats_problem
from bundle.data import LAYOUTS, MODALITIES, Modality
from bundle.data.patients import pattern_problem
from bundle.option_types import Device, OutputFolder, RequiredFolders, one_of, refuse
from bundle.options import Options
from bundle.training.discriminators import DISCRIMINATORS

__all__ = [
    "Command",
    "Discriminator",
    "Formats",
    "Kimg",
    "Layout",
    "ModalityName",
    "OptionalFormats",
    "Pattern",
    "Points",
    "RealImagesOptions",
    "Reported",
    "Resolution",
    "Shadows",
    "Tracked",
]


def _without(problem_of: Callable[[Any], str | None]) -> AfterValidator:
    """Returns a validator that refuses values of which the function returns a problem."""

    def check(value: Any) -> Any:
        if problem := problem_of(value):
            raise refuse(problem)
        return value

    return AfterValidator(check)


Pattern = Annotated[Any, _without(lambda value: None if value is None else pattern_problem(value))]
Formats = Annotated[Any, _without(formats_problem)]
OptionalFormats = Annotated[Any, _without(lambda value: None if value is None else formats_problem(value))]

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
