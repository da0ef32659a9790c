# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Reads elements of a DICOM data set as checked values, and creates the errors that name them."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from bundle.data.formats import ReadError

__all__ = [
    "absent_tag",
    "required_number",
    "tag_name",
    "tag_names",
    "tag_number",
    "tag_numbers",
    "tag_values",
    "wrong_tag",
]


def tag_name(keyword: str) -> str:
    """Returns the name of an element in messages: ``WindowWidth (0028,1051)``."""
    tag = tag_for_keyword(keyword) or 0
    return f"{keyword} ({tag >> 16:04X},{tag & 0xFFFF:04X})"


def tag_names(*keywords: str) -> str:
    """Returns the names of several elements in messages, joined by "and"."""
    return " and ".join(tag_name(keyword) for keyword in keywords)


def wrong_tag(keyword: str, message: str) -> ReadError:
    """Returns the error for an element with an invalid value."""
    return ReadError("wrong tag", f"the tag {tag_name(keyword)} {message}", f"Correct or delete the tag {keyword}")


def absent_tag(keyword: str) -> ReadError:
    """Returns the error for a required element that is absent or empty."""
    return ReadError("unreadable", f"DICOM without the tag {tag_name(keyword)}", "Export it again with that tag")


def tag_values(dataset: Dataset, keyword: str) -> list[Any]:
    """Returns an element's values; an empty list for an absent or empty element."""
    try:
        value = dataset.get(keyword)
    except Exception as error:  # pydicom converts on access and raises many types of errors for invalid text
        raise wrong_tag(keyword, "holds a value that DICOM does not allow there") from error
    values = [value] if isinstance(value, (str, bytes, int, float)) or value is None else list(value)
    return [] if values and values[0] in (None, "", b"") else values


def tag_numbers(dataset: Dataset, keyword: str) -> list[float]:
    """Returns an element's values as finite numbers; an empty list for an absent or empty element."""
    values = tag_values(dataset, keyword)
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise wrong_tag(keyword, f"holds {str(values[0])[:40]!r}, which is no number") from error
    if not np.isfinite(numbers).all():
        raise wrong_tag(keyword, "holds a value that is not finite")
    return numbers


def tag_number(dataset: Dataset, keyword: str) -> float | None:
    """Returns an element's first value, or None for an absent or empty element."""
    numbers = tag_numbers(dataset, keyword)
    return numbers[0] if numbers else None


def required_number(dataset: Dataset, keyword: str) -> int:
    """Returns an element's first value as an integer; raises ReadError where there is none."""
    number = tag_number(dataset, keyword)
    if number is None:
        raise absent_tag(keyword)
    return int(number)
