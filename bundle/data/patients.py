# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Whose an image is, where its name tells."""

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

#: Ways in which names of files and folders tell patients, tried in this order.
_KNOWN_PATTERNS = (
    r"person(\d+)_",
    r"(?i)(?:patient|subject|participant|sub|pat)[ _-]?(\d+)",
    r"(?i)^(.+)[ _-](?:left|right|od|os|l|r)$",
    r"^(\d{3,})[_-]\d+$",
    r"^(.+/.+)/[^/]+$",
)


def pattern_problem(pattern: Any) -> str | None:
    """Says what is wrong with a regular expression whose first group is the patient; None if nothing is.

    Args:
        pattern: the expression; "" finds nobody.

    Returns:
        Words that follow what the user calls it.
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
    """Refuses what :func:`pattern_problem` finds something wrong with.

    Args:
        pattern: the expression.
        option: what the user calls it, for the message.

    Raises:
        DataError: not an expression, or not of one group.
    """
    if problem := pattern_problem(pattern):
        raise DataError(f"{option} {problem}")


def find_patient(pattern: str, path: Path) -> str | None:
    """Returns the patient that a pattern finds in an image's name, None where it finds none.

    Args:
        pattern: see :func:`pattern_problem`; sought in the file's name, then in the name without its ending, then in
            the whole path.
        path: of the image, relative to the data set's folder.
    """
    if not pattern:
        return None
    for text in (path.name, image_stem(path), path.as_posix()):
        if (match := re.search(pattern, text)) and not says_none(match[1] or ""):
            return match[1]
    return None


def propose_pattern(records: Sequence[Record]) -> tuple[str, int, int] | None:
    """Looks for patients in the names of images that have none.

    A pattern is worth proposing where it finds at least ten patients, a patient for at least a fifth of the images, and
    several images for at least a tenth of the patients.

    Args:
        records: images without a patient.

    Returns:
        Pattern, number of images that it finds a patient for, and number of these patients; None where none fits.
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
    """Lists the patients who are spelt in two ways: by capital letters or blanks, which tables often mix up.

    As two patients, their images could part between train and test.

    Args:
        records: of all images.
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
