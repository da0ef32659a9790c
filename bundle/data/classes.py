# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Maps the class names of a data set to labels, without guessing."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from bundle.class_names import shown, spelling_key
from bundle.data.errors import DataError
from bundle.data.modality import Modality
from bundle.data.records import says_none

__all__ = ["describe_classes", "label_classes", "label_numbered_classes"]


def describe_classes(modality: Modality) -> str:
    """Lists the labels of a preset with their names, for messages: "0 (normal), 1 (tuberculosis)"."""
    return ", ".join(f"{label} ({name})" for label, name in enumerate(modality.class_names))


def label_classes(names: Iterable[str], modality: Modality) -> tuple[tuple[str, ...], dict[str, int]]:
    """Assigns a label to each class name of a data set.

    If the preset knows every name or number, its classes and labels are used. Otherwise, the classes are those that
    occur in the data set: known ones keep their label where labels without gaps allow it, and new ones get the free
    labels in alphabetical order. New names get no label, and the preset's classes are used, where these are ordered or
    fixed or where any of the names is a number.

    Args:
        names: class names, as in folders or cells.
        modality: preset of the kind of image.

    Returns:
        Class names by label, and the label of each name; names without a label are omitted.

    Raises:
        DataError: a new name differs from another one, or from one of the preset's, only in separators or punctuation.
    """
    names = set(names)
    known = {name: label for name in names if (label := modality.label_of(name)) is not None}
    unknown = {name for name in names - set(known) if not says_none(name)}
    numbers = {name for name in names if _is_number(name)}
    if not unknown or modality.ordered or modality.has_fixed_classes or numbers:
        return modality.class_names, known
    new = sorted({_key(name): name for name in sorted(unknown, reverse=True)}.values())
    _refuse_spellings(new, modality)
    labels = sorted(set(known.values()))
    n_classes = len(labels) + len(new)
    if labels and labels[-1] >= n_classes:  # the preset's labels would leave a gap
        renumbered = {label: position for position, label in enumerate(labels)}
    else:
        renumbered = {label: label for label in labels}
    free = iter(sorted(set(range(n_classes)) - set(renumbered.values())))
    label_of_new = {_key(name): next(free) for name in new}
    class_names = dict(zip(label_of_new.values(), new, strict=True))
    class_names |= {renumbered[label]: modality.class_names[label] for label in labels}
    result = {name: renumbered[label] for name, label in known.items()}
    result |= {name: label_of_new[_key(name)] for name in unknown}
    return tuple(class_names[label] for label in range(n_classes)), result


def label_numbered_classes(pairs: Collection[tuple[int, str]], modality: Modality) -> tuple[str, ...] | None:
    """Returns the class names of a data set that gives both a number and a name for each class.

    Args:
        pairs: number and name of each class, as they occur.
        modality: preset of the kind of image.

    Returns:
        Class names by label; None where numbers and names do not match one to one, where the numbers are not 0, 1, ...
        without a gap, or where the preset knows all names or has ordered or fixed classes.
    """
    named = dict(sorted(pairs, reverse=True))
    one_to_one = len(named) == len({_key(name) for name in named.values()}) == len({(n, _key(m)) for n, m in pairs})
    preset = modality.ordered or modality.has_fixed_classes
    if preset or all(modality.label_of(name) is not None for name in named.values()):
        return None
    if not one_to_one or sorted(named) != list(range(len(named))):
        return None
    return tuple(named[number] for number in sorted(named))


def _refuse_spellings(new: Iterable[str], modality: Modality) -> None:
    spellings = (*(alias for alias, _ in modality.class_aliases), *modality.class_names)
    seen = {spelling_key(name): name for name in spellings}
    for name in new:
        key = spelling_key(name)
        if key and key in seen:
            raise DataError(
                f"the classes {shown(seen[key])} and {shown(name)} differ in spaces or punctuation alone. Spell them "
                "alike where they are one class; else call them by different words"
            )
        seen[key] = name


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def _key(name: str) -> str:
    return " ".join(name.split()).casefold()
