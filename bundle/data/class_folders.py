# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Reads data sets with one folder per class, optionally inside or around folders named after the splits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from bundle.class_names import spelling_key
from bundle.data.classes import describe_classes, label_classes
from bundle.data.errors import DataError
from bundle.data.listing import FolderListing
from bundle.data.modality import Modality
from bundle.data.readers import image_stem
from bundle.data.records import SPLIT_NAMES, Record

__all__ = ["contradicting_folders", "has_class_folders", "read_class_folders"]

# Words in the name of a folder or file that mark it as a segmentation or annotation rather than an image.
_MASK = re.compile(r"(?:^|[\W_])(?:masks?|segmentations?|segs?|annotations?|ground ?truths?|labels?)(?:$|[\W_\d])")


def _is_mask_name(name: str) -> bool:
    """Returns whether a name marks a mask: lung_masks, ManualMask, "COVID-1 (2)_mask"."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).casefold()
    return _MASK.search(words) is not None


def _split_of(folder: Path) -> str | None:
    """Returns the split that a folder is named after (train, Training, test_set, "Validation data"), or None."""
    word = re.sub(r"[ _-]*(set|data|images|imgs|split)$", "", folder.name.strip().casefold())
    return SPLIT_NAMES.get(word)


def _mask_files(images: Sequence[Path]) -> set[Path]:
    """Returns the files with an image of the same name without "mask" in their folder: a_mask.png beside a.png."""
    there = {(path.parent, image_stem(path)) for path in images}
    masks = set()
    for path in images:
        stem = image_stem(path)
        original = re.sub(r"[ _-]*(?:mask|seg|segmentation)(?:[ _-]?\d+)?$", "", stem, flags=re.IGNORECASE)
        if original != stem and (path.parent, original) in there:
            masks.add(path)
    return masks


def _class_folders(listing: FolderListing) -> list[tuple[str | None, Path]]:
    """Returns (split, class folder) pairs; the split is None where no folder above the class folder names one.

    Raises:
        DataError: folders named after splits are mixed with other folders or images.
    """
    tops = [top for top in listing.subfolders(listing.folder) if not _is_mask_name(top.name)]
    if any(map(_split_of, tops)):
        _refuse_mixture(listing, listing.folder, tops)
        return [
            (_split_of(top), below)
            for top in tops
            for below in listing.subfolders(top)
            if not _is_mask_name(below.name)
        ]
    pairs: list[tuple[str | None, Path]] = []
    for top in tops:
        inner = [below for below in listing.subfolders(top) if not _is_mask_name(below.name)]
        if any(map(_split_of, inner)):
            _refuse_mixture(listing, top, inner)
            if any(path.parent == top for path in listing.below(top)):
                raise DataError(
                    f"{top}: images lie beside folders named after splits. Move each image into one of the folders"
                )
        pairs.append((None, top))
    return pairs


def _refuse_mixture(listing: FolderListing, folder: Path, folders: Sequence[Path]) -> None:
    others = [path.name for path in folders if _split_of(path) is None]
    if others:
        splits = [path.name for path in folders if _split_of(path) is not None]
        raise DataError(
            f"{folder}: folders named after splits ({', '.join(splits)}) stand beside others ({', '.join(others)}). "
            "Put the class folders into the folders of the splits, or rename or move away what is not meant so"
        )


def has_class_folders(listing: FolderListing) -> bool:
    """Returns whether a folder holds at least two possible class folders, or a mixture of class and split folders."""
    try:
        return len({path.name.casefold() for _, path in _class_folders(listing)}) >= 2
    except DataError:
        return True


def _refuse_classes_below(listing: FolderListing, pairs: Sequence[tuple[str | None, Path]], modality: Modality) -> None:
    """Refuses class folders whose subfolders may be the classes just as well, as in hospital/class/image.png.

    This is so where a subfolder is named after another class than the folder above it, or where at least two names of
    subfolders occur below several class folders, none of which the preset knows. Subfolders whose names contain digits
    are taken for patients or views, unless the preset knows the names of all subfolders.
    """

    def class_of(name: str) -> int | str | None:
        label = modality.label_of(name)
        return tops.get(spelling_key(name)) if label is None else label

    tops: dict[str, int | str] = {spelling_key(top.name): top.name for _, top in pairs}
    tops |= {key: label for key, name in tops.items() if (label := modality.label_of(str(name))) is not None}
    above: dict[str, set[str]] = {}
    for split, top in pairs:
        for path in listing.below(top):
            between = [name for name in path.relative_to(top).parts[:-1] if not _is_mask_name(name)]
            if split is None and between and _split_of(Path(between[0])):
                between = between[1:]
            if between:
                above.setdefault(between[0], set()).add(top.name)
            for name in between:
                if not name.isdecimal() and (other := class_of(name)) is not None and other != class_of(top.name):
                    _refuse_readings(listing, path.parent, top.name, name)
    shared = sorted(name for name, found in above.items() if len(found) > 1)
    numbers = all(modality.label_of(name) is not None for name in above)
    named = [name for name in shared if numbers or not any(map(str.isdigit, name))]
    if len(named) > 1 and not any(isinstance(label, int) for label in tops.values()):
        lower, upper = named[0], min(above[named[0]])
        _refuse_readings(listing, next(top for _, top in pairs if top.name == upper) / lower, upper, lower)


def _refuse_readings(listing: FolderListing, folder: Path, upper: str, lower: str) -> None:
    raise DataError(
        f"{listing.folder}: the images in {listing.name(folder)} may be of class {upper!r} or of class {lower!r}. Make "
        f"one folder per class, with all other folders in it ({lower}/{upper}/...), or list the images in labels.csv"
    )


def _empty_folders(listing: FolderListing, pairs: Sequence[tuple[str | None, Path]]) -> list[str]:
    """Returns the names of folders beside class folders that hold no image and are no class folder elsewhere."""
    names = {path.name for _, path in pairs}
    empty = set()
    for home in {path.parent for _, path in pairs}:
        full = set(listing.subfolders(home))
        for path in home.iterdir():
            known = path in full or path.name in names or path.name.startswith((".", "__"))
            if not known and path.is_dir() and not _is_mask_name(path.name) and _split_of(path) is None:
                empty.add(path.name)
    return sorted(empty)


def read_class_folders(
    listing: FolderListing, modality: Modality
) -> tuple[list[Record], tuple[str, ...], list[tuple[Path, str]], list[str]]:
    """Reads records from class folders.

    Args:
        listing: listing of the data set's folder.
        modality: preset; :func:`bundle.data.classes.label_classes` defines the valid names of class folders.

    Returns:
        Records, class names by label, unused images with the reason, and notes.

    Raises:
        DataError: there are no class folders, a folder's name is no valid class, two names mean one class, the
            subfolders may be the classes just as well, or masks or splits are mixed with class folders.
    """
    folder = listing.folder
    pairs = _class_folders(listing)
    names = sorted({path.name for _, path in pairs})
    if not names:
        raise DataError(f"{folder}: no folder with images in it; make one folder per class, named after the class")
    masks = [top.name for top in listing.subfolders(folder) if _is_mask_name(top.name)]
    if masks:
        raise DataError(
            f"{folder}: {', '.join(masks)} stands beside the class folders {', '.join(names)}; masks are no class. "
            "Move it out of the data set's folder, or list the images in labels.csv"
        )
    _refuse_classes_below(listing, pairs, modality)
    class_names, label_of = label_classes(names, modality)
    unknown = [name for name in names if name not in label_of]
    meanings: dict[int, set[str]] = {}
    for name, label in label_of.items():
        meanings.setdefault(label, set()).add(name.casefold())
    double = sorted(name for same in meanings.values() if len(same) > 1 for name in same)
    if unknown or double:
        what = f"{' and '.join(double)} are one class under two names"
        if unknown:
            what = f"{', '.join(unknown)} cannot be told to be a class"
        among = "" if unknown == names else f"of the folders {', '.join(names)}, "
        raise DataError(
            f"{folder}: {among}{what}. The classes of modality {modality.name!r} are "
            f"{describe_classes(modality)}: name each folder after its class, or list the images in labels.csv"
        )
    records = []
    reasons: list[tuple[Path, str]] = []
    drawn = _mask_files(listing.images)
    for split, class_folder in pairs:
        for path in listing.below(class_folder):
            between = path.relative_to(class_folder).parts[:-1]
            if path in drawn or any(map(_is_mask_name, between)):
                reasons.append((path, "masks by their name"))
                continue
            inner = _split_of(class_folder / between[0]) if between and split is None else None
            name = listing.name(path)
            records.append(Record(path, name, label_of[class_folder.name], name, split or inner))
    taken = {record.image for record in records} | {path for path, _ in reasons}
    reasons += [(path, "images outside the class folders") for path in listing.images if path not in taken]
    empty = _empty_folders(listing, pairs)
    notes = [f"No image in {', '.join(empty)}, beside the class folders: taken for no class."] if empty else []
    return records, class_names, reasons, notes


def contradicting_folders(records: Sequence[Record], modality: Modality) -> list[str]:
    """Counts the images that lie in a folder named after another class than the one that a table gives them.

    Args:
        records: records with the labels of the table, which take precedence.
        modality: preset with the classes of the data set.

    Returns:
        A list of one note, empty if there are no such images.
    """
    found = []
    for record in records:
        for name in Path(record.name).parts[:-1]:
            label = None if name.isdecimal() else modality.label_of(name)
            if None not in (label, record.label) and label != record.label:
                found.append(f"{record.name} ({modality.class_names[record.label or 0]})")
                break
    if not found:
        return []
    more = " and more" if len(found) > 3 else ""
    return [
        f"{len(found)} of {len(records)} images lie in folders that are called after another class than the table "
        f"gives them; the table counts: {', '.join(found[:3])}{more}."
    ]
