# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""One folder of images for each class, also within or around folders named after the splits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from bundle.data.classes import describe_classes, label_classes
from bundle.data.errors import DataError
from bundle.data.listing import FolderListing
from bundle.data.modality import Modality
from bundle.data.readers import image_stem
from bundle.data.records import SPLIT_NAMES, Record

__all__ = ["has_class_folders", "read_class_folders"]

# Words that make a folder or a file a drawing over an image rather than an image.
_MASK = re.compile(r"(?:^|[\W_])(?:masks?|segmentations?|segs?|annotations?|ground ?truths?|labels?)(?:$|[\W_\d])")


def _is_mask_name(name: str) -> bool:
    """Whether a name says "mask": lung_masks, ManualMask, "COVID-1 (2)_mask"."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).casefold()
    return _MASK.search(words) is not None


def _split_of(folder: Path) -> str | None:
    """Returns the split that a folder is named after: train, Training, test_set, "Validation data"."""
    word = re.sub(r"[ _-]*(set|data|images|imgs|split)$", "", folder.name.strip().casefold())
    return SPLIT_NAMES.get(word)


def _mask_files(images: Sequence[Path]) -> set[Path]:
    """Returns the files that lie beside an image of the same name without "mask", such as a_mask.png beside a.png."""
    there = {(path.parent, image_stem(path)) for path in images}
    masks = set()
    for path in images:
        stem = image_stem(path)
        original = re.sub(r"[ _-]*(?:mask|seg|segmentation)(?:[ _-]?\d+)?$", "", stem, flags=re.IGNORECASE)
        if original != stem and (path.parent, original) in there:
            masks.add(path)
    return masks


def _class_folders(listing: FolderListing) -> list[tuple[str | None, Path]]:
    """Returns (split, class folder) pairs; the split is None where no folder names one.

    Raises:
        DataError: folders named after splits stand beside others.
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
    """Whether a folder holds at least two folders of images that can be classes, or a mixture of them and splits."""
    try:
        return len({path.name.casefold() for _, path in _class_folders(listing)}) >= 2
    except DataError:
        return True


def read_class_folders(
    listing: FolderListing, modality: Modality
) -> tuple[list[Record], tuple[str, ...], list[tuple[Path, str]]]:
    """Turns class folders into records.

    Args:
        listing: of the data set's folder.
        modality: preset; see :func:`bundle.data.classes.label_classes` for what class folders may be called.

    Returns:
        Records, class names, and the images that take no part with the reason.

    Raises:
        DataError: there are none, a folder's name cannot be a class, two folders mean one class, or masks or splits
            stand beside the classes.
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
    return records, class_names, reasons
