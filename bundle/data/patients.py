# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Whose an image is, where its name tells."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from bundle.data.errors import DataError
from bundle.data.readers import image_suffix
from bundle.data.records import Record

__all__ = ["compile_pattern", "find_patient", "propose_pattern"]

#: Ways in which names of files and folders tell patients, tried in this order.
_KNOWN_PATTERNS = (
    r"person(\d+)_",
    r"(?i)(?:patient|subject|participant|sub|pat)[ _-]?(\d+)",
    r"(?i)^(.+)[ _-](?:left|right|od|os|l|r)$",
    r"^(\d{3,})[_-]\d+$",
    r"^(.+/.+)/[^/]+$",
)


def compile_pattern(pattern: str, option: str) -> re.Pattern[str]:
    """Compiles a regular expression whose first group is the patient.

    Args:
        pattern: the expression; "" finds nobody.
        option: what the user calls it, for messages.

    Raises:
        DataError: not an expression, or not of one group.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError(f"{option} is no regular expression ({error}): {pattern!r}") from error
    if pattern and compiled.groups != 1:
        raise DataError(
            f"{option} needs one group, the patient, in brackets; it has {compiled.groups}: {pattern!r}. Write other "
            "brackets as (?:...)"
        )
    return compiled


def find_patient(pattern: str, path: Path) -> str | None:
    """Returns the patient that a pattern finds in an image's name, None where it finds none.

    Args:
        pattern: see :func:`compile_pattern`; sought in the file's name, then in the name without its ending, then in
            the whole path.
        path: of the image, relative to the data set's folder.
    """
    if not pattern:
        return None
    stem = path.name[: -len(image_suffix(path)) or None]
    for text in (path.name, stem, path.as_posix()):
        if (match := re.search(pattern, text)) and match[1]:
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
