# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Checks of the names of classes and modalities, which become parts of file names."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

__all__ = ["MOST_CHARACTERS", "class_names_problem", "name_problem", "shown", "spelling_key"]

#: Longest name in characters; with a number and a suffix, a file name stays below the 255 bytes of most file systems.
MOST_CHARACTERS = 100
MOST_BYTES = 200
# Names reserved by Windows, with any extension; it treats superscript digits as digits.
DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3]) *(\..*)?", re.IGNORECASE)
FORBIDDEN = '/\\<>:"|?*'
# Joiners are needed in Persian and Indic scripts; other format characters change how a line is displayed.
JOINERS = "\u200c\u200d"


def name_problem(name: Any) -> str | None:
    """Returns why a name cannot be part of a file name on every system, as a predicate of the name, or None if it can.

    Spaces and letters of all scripts are allowed.

    Args:
        name: any value given as a name.
    """
    if not isinstance(name, str):
        return "is not a text"
    if all(character == "." or character.isspace() for character in name):
        return "is empty, or nothing but spaces and dots"
    if len(name) > MOST_CHARACTERS or len(name.encode(errors="replace")) > MOST_BYTES:
        return f"is longer than {MOST_CHARACTERS} characters or {MOST_BYTES} bytes"
    for character in name:
        category = unicodedata.category(character)
        if category in ("Cc", "Cs", "Zl", "Zp") or (category == "Cf" and character not in JOINERS):
            return f"holds the control character U+{ord(character):04X}"
        if character in FORBIDDEN:
            return f"holds {character}, which file names cannot hold everywhere"
    if ".." in name or name.startswith("."):
        return "holds two dots in a row, or begins with a dot"
    if DEVICES.fullmatch(name):
        return "is reserved on Windows"
    return None


def class_names_problem(names: Any, num_classes: int | None = None) -> str | None:
    """Returns what is wrong with the names of classes, or None.

    Args:
        names: list or tuple of names, one for each label.
        num_classes: required number of names; None for any.
    """
    if not isinstance(names, list | tuple) or not names:
        return "they must be a list of at least one name"
    for name in names:
        problem = name_problem(name)
        if problem:
            return f"{shown(name)} {problem}"
    seen: dict[str, str] = {}
    for name in names:
        key = spelling_key(name) or name
        if key in seen:
            same = _folded(seen[key]) == _folded(name)
            why = "are the same to some file systems" if same else "differ in spaces or punctuation alone"
            return f"{shown(seen[key])} and {shown(name)} {why}"
        seen[key] = name
    if num_classes is not None and len(names) != num_classes:
        return f"there are {len(names)}, and the number of classes is {num_classes}"
    return None


def spelling_key(name: str) -> str:
    """Returns a name without case, spaces and punctuation, which is equal for different spellings of one name.

    "viral pneumonia" and "viral_pneumonia" are the same class. Symbols are kept, as in "HER2+".

    Args:
        name: name of a class.
    """
    return "".join(character for character in _folded(name) if unicodedata.category(character)[0] not in "ZPC")


def _folded(name: str) -> str:
    # Some file systems treat names as equal that differ in case or in the encoding of accents.
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def shown(value: Any, most: int = 60) -> str:
    """Returns the shortened repr of a value, without control characters, for one line of an error message."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."
