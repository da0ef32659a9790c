# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""What is known about one image before it is opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["SPLITS", "SPLIT_NAMES", "Record", "says_none"]

#: train is what the networks see, val selects and calibrates, test alone is held out; extra joins train for the GAN
#: and the identity networks only.
SPLITS = ("train", "val", "test", "extra")

#: What tables call the splits, in small letters, and which one is meant.
SPLIT_NAMES = {name: name for name in SPLITS} | {
    "training": "train",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "testing": "test",
}

#: What tables write, in small letters, where they know no value. Not "none", which may be a finding.
_NO_VALUE = {
    *("", "na", "n/a", "n.a.", "nan", "<na>", "#n/a", "null", "nil", "unknown", "unk", "undefined", "unspecified"),
    *("missing", "not available", "not known", "?", "??", "???", "-", "--", "---", "."),
}


def says_none(text: str) -> bool:
    """Whether a cell or a tag says that there is no value: "NA", "unknown", "?", or nothing at all."""
    return " ".join(text.split()).casefold() in _NO_VALUE


@dataclass(frozen=True)
class Record:
    """One image of a data set.

    Attributes:
        image: absolute path of the file.
        name: path relative to the data set's folder, with forward slashes; unique within the data set.
        label: class, 0 to the number of classes - 1; None when the source does not say.
        patient_id: whose image it is; images of one patient never part between splits. The name where the source does
            not say.
        split: one of :data:`SPLITS` when the source says, else None.
    """

    image: Path
    name: str
    label: int | None
    patient_id: str
    split: str | None = None

    @property
    def has_patient(self) -> bool:
        """Whether the source says whose image it is."""
        return self.patient_id != self.name
