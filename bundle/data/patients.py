# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Finds the patient of an image in the names of its file and folders."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bundle.data.errors import DataError, Problem
from bundle.data.readers import image_stem
from bundle.data.records import Record, says_none

__all__ = ["check_pattern", "find_patient", "pattern_problem", "propose_pattern", "spelling_problems"]

#: Common patterns of patients in the names of files and folders, tried in this order.
_KNOWN_PATTERNS = (
    r"person(\d+)_",
    r"(?i)(?:patient|subject|participant|sub|pat)[ _-]?(\d+)",
    r"(?i)^(.+)[ _-](?:left|right|od|os|l|r)$",
    r"^(\d{3,})[_-]\d+$",
    r"^(.+/.+)/[^/]+$",
)


def pattern_problem(pattern: Any) -> str | None:
    """Checks a regular expression whose only group is the patient.

    Args:
        pattern: regular expression; "" for no pattern.

    Returns:
        Description of the problem, to follow the name of the option; None for a valid expression.
    """
    try:
        groups = re.compile(pattern).groups
    except (re.error, TypeError) as error:
        return f"is no regular expression ({error}): {pattern!r}"
    if pattern and groups != 1:
        return (
            f"needs one group, the patient, in brackets; it has {groups}: {pattern!r}. Write other brackets as (?:...)"
        )
    return None


def check_pattern(pattern: str, option: str) -> None:
    """Raises an error for an invalid patient pattern.

    Args:
        pattern: regular expression, see :func:`pattern_problem`.
        option: name of the option, for the message.

    Raises:
        DataError: the pattern is no regular expression, or does not have exactly one group.
    """
    if problem := pattern_problem(pattern):
        raise DataError(f"{option} {problem}")


def find_patient(pattern: str, path: Path) -> str | None:
    """Returns the patient that a pattern finds in an image's name, or None.

    Args:
        pattern: regular expression, see :func:`pattern_problem`; searched in the file's name, in the name without the
            file extension, and in the whole path.
        path: path of the image, relative to the data set's folder.
    """
    if not pattern:
        return None
    for text in (path.name, image_stem(path), path.as_posix()):
        if (match := re.search(pattern, text)) and not says_none(match[1] or ""):
            return match[1]
    return None


def propose_pattern(records: Sequence[Record]) -> tuple[str, int, int] | None:
    """Proposes a pattern that finds patients in the names of images.

    It finds at least ten patients, a patient for at least a fifth of the images, and several images for at least a
    tenth of the patients.

    Args:
        records: records of images without a patient.

    Returns:
        The pattern, the number of images that it finds a patient for, and the number of patients; None where no known
        pattern fits.
    """
    for pattern in _KNOWN_PATTERNS:
        patients: dict[str, int] = defaultdict(int)
        for record in records:
            if patient := find_patient(pattern, Path(record.name)):
                patients[patient] += 1
        found, several = sum(patients.values()), sum(number > 1 for number in patients.values())
        if len(patients) >= 10 and found >= len(records) / 5 and several >= len(patients) / 10:
            return pattern, found, len(patients)
    return None


def spelling_problems(records: Sequence[Record]) -> list[Problem]:
    """Returns a problem for each patient id that differs from another one only in case or spaces.

    Such ids usually mean one patient, whose images could otherwise be in both train and test.

    Args:
        records: records of all images.
    """
    first: dict[str, Record] = {}
    problems: dict[str, Problem] = {}
    for record in records:
        if not record.has_patient:
            continue
        patient = record.patient_id
        key = " ".join(unicodedata.normalize("NFC", patient).split()).casefold()
        other = first.setdefault(key, record)
        if other.patient_id != patient and patient not in problems:
            message = f"patient {patient!r} here, but {other.patient_id!r} in {other.name}"
            cure = "Spell a patient alike everywhere; if they are two, tell them apart by more than capitals and blanks"
            problems[patient] = Problem(record.name, "patient spelt twice", message, cure)
    return list(problems.values())
