# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Names of classes and modalities, which become parts of file names: what they may be."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

__all__ = ["MOST_CHARACTERS", "class_names_problem", "name_problem", "shown", "spelling_key"]

#: Characters of a name; with a number and a suffix, its file name stays below the 255 bytes that file systems take.
MOST_CHARACTERS = 100
MOST_BYTES = 200
# Reserved by Windows, whatever follows after a dot, with the superscripts that it takes for digits.
DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3]) *(\..*)?", re.IGNORECASE)
FORBIDDEN = '/\\<>:"|?*'
# Joiners are letters' business in Persian and in the scripts of India; other format characters change how a line reads.
JOINERS = "\u200c\u200d"


def name_problem(name: Any) -> str | None:
    """Says why a name cannot be part of a file name on every system, in words that follow the name; None if it can.

    Spaces and letters of every script are allowed.

    Args:
        name: whatever stands in the place of a name.
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
    """Says what is wrong with the names of classes; None if nothing is.

    Args:
        names: a list or tuple of names, one for each label.
        num_classes: how many there must be; None leaves that open.
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
    """Returns what is left of a name without capital letters, spaces and punctuation: equal for spellings of one name.

    "viral pneumonia" and "viral_pneumonia" are no two classes. Symbols stay, as in "HER2+".

    Args:
        name: of a class.
    """
    return "".join(character for character in _folded(name) if unicodedata.category(character)[0] not in "ZPC")


def _folded(name: str) -> str:
    # File systems may take names for the same that differ in capitals or in how accents are coded.
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def shown(value: Any, most: int = 60) -> str:
    """Returns a value as Python writes it, cut short and without control characters, for a line of an error message."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."
