# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""What each option of the commands may be. A name means the same in every configuration file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import bundle.options
from bundle.audit.images import PREPROCESSING
from bundle.data import LAYOUTS, MODALITIES, Modality
from bundle.data.patients import pattern_problem
from bundle.options import (
    Choice,
    Device,
    Either,
    File,
    Flag,
    Folder,
    Folders,
    Integer,
    Integers,
    Kind,
    Number,
    OutputFolder,
)
from bundle.training.discriminators import DISCRIMINATORS
from bundle.walk.objective import OBJECTIVES

__all__ = ["KINDS", "Pattern", "check_options"]


class Pattern:
    """A regular expression that finds patients."""

    def problem(self, value: Any) -> str | None:
        """See `bundle.options.Kind.problem`."""
        return pattern_problem(value)


KINDS: dict[str, Kind] = {
    "audit_dir": Folder(),
    "augment": Choice(("adaptive", "fixed")),
    "augment_kimg": Number(above=0),
    "augment_p": Number(above=0, most=1, or_equal=True),
    "augment_target": Number(above=-1, most=1),
    "batch_size": Integer(1),
    "checkpoint": File(),
    "class_learning_rate": Number(above=0),
    "cohort_dir": Folder(),
    "cohort_preprocessing": Choice(PREPROCESSING),
    "dataset_dir": Folders(),
    "device": Device(),
    "drop_duplicates": Flag(),
    "discriminator": Choice(("auto", *DISCRIMINATORS)),
    "ema_kimg": Number(above=0),
    "epoch_kimg": Number(above=0),
    "guides": Choice(("latent", "image")),
    "init_from": File(),
    "lambda_class": Number(above=0, or_equal=True),
    "lambda_prior": Number(above=0, or_equal=True),
    "layout": Either(
        ("auto", *LAYOUTS), Mapping, "the columns of a table, as in {'image': 'id_code', 'label': 'diagnosis'}"
    ),
    "learning_rate": Number(above=0),
    "long_pairs": Integer(1),
    "long_points": Integer(3),
    "max_epochs": Integer(1),
    "measure_kimg": Number(above=0),
    "modality": Either(tuple(MODALITIES), Modality, "a configuration file that describes one, as docs/data.md shows"),
    "models_dir": Folder(),
    "n_images": Integer(1),
    "n_latents": Integer(1),
    "n_points": Integer(3),
    "n_seeds": Integer(1),
    "n_shadows": Choice(tuple(range(4, 257, 2))),
    "n_visited": Integer(1),
    "objective": Choice(tuple(OBJECTIVES)),
    "output_dir": OutputFolder(),
    "patient_pattern": Pattern(),
    "projection_file": File(),
    "published_pairs": Integer(0),
    "resolution": Choice((32, 64, 128, 256, 512)),
    "rounds": Integer(0),
    "seed": Integer(0, 2**32 - 1),
    "seeds": Integers(0, 2**32 - 1),
    "total_kimg": Number(above=0.001, or_equal=True),
    "trunk_file": File(),
    "variety": Number(above=0, or_equal=True),
}


def check_options(required: Sequence[str] = (), **values: Any) -> None:
    """Refuses options that do not exist or cannot be; the first expression of every run id.

    Args:
        required: names of options that must be given.
        **values: every option of the command, as ``seed=@seed``.

    Raises:
        OptionError: see `bundle.options.check_options`.
    """
    bundle.options.check_options(KINDS, values, required)
