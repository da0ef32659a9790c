# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Defines the record of an image: its file, label, patient and split, as known before the file is opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["SPLITS", "SPLIT_NAMES", "Record", "says_none"]

#: train: images that networks are trained on. val: for model selection and calibration. test: held out from both.
#: extra: additional training images of the GAN and the identity networks only.
SPLITS = ("train", "val", "test", "extra")

#: Names of splits in tables and folders, in lower case, and the split that each stands for.
SPLIT_NAMES = {name: name for name in SPLITS} | {
    "training": "train",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "testing": "test",
}

#: Markers of missing values, in lower case. "none" is not one of them: it may be a finding.
_NO_VALUE = {
    *("", "na", "n/a", "n.a.", "nan", "<na>", "#n/a", "null", "nil", "unknown", "unk", "undefined", "unspecified"),
    *("missing", "not available", "not known", "?", "??", "???", "-", "--", "---", "."),
}


def says_none(text: str) -> bool:
    """Returns whether the text of a cell or tag marks a missing value: "NA", "unknown", "?", or an empty text."""
    return " ".join(text.split()).casefold() in _NO_VALUE


@dataclass(frozen=True)
class Record:
    """One image of a data set.

    Attributes:
        image: absolute path of the file.
        name: path relative to the data set's folder, with forward slashes; unique within the data set.
        label: class, 0 to the number of classes - 1; None where the source gives none.
        patient_id: identifier of the patient, all of whose images are in one split; equal to the name where the source
            gives none.
        split: one of :data:`SPLITS`; None where the source gives none.
        source: collection, hospital or device that the image comes from, as the column ``source`` of a table says.
    """

    image: Path
    name: str
    label: int | None
    patient_id: str
    split: str | None = None
    source: str | None = None

    @property
    def has_patient(self) -> bool:
        """Whether the source names the patient."""
        return self.patient_id != self.name
