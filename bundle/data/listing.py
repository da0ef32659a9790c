# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Lists all files below a folder: images, known clutter, and others with the reason why they are left out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bundle.data.errors import Problem
from bundle.data.readers import image_format

__all__ = ["FolderListing", "LeftOut", "list_folder", "summarise_left_out"]

#: Files and folders that operating systems create and that belong to no data set.
_CLUTTER_FILES = {".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini"}
_CLUTTER_FOLDERS = {"__macosx"}
_CLUTTER = "clutter"

#: Number of files per reason that a message names; the rest are only counted.
_EXAMPLES = 3


@dataclass(frozen=True, order=True)
class LeftOut:
    """A file that is not used in a data set.

    Attributes:
        name: path relative to the folder, with forward slashes.
        reason: category of the file, in the plural: "hidden files".
    """

    name: str
    reason: str


@dataclass(frozen=True)
class FolderListing:
    """All files below a folder; symbolic links to files and folders are followed.

    Attributes:
        folder: absolute path of the folder.
        images: absolute paths of the files that are read as images, sorted.
        others: absolute paths of other files, such as tables, sorted, with the reason why they are not images.
        problems: obstacles to a complete listing: broken links to images, folders that cannot be opened, and names that
            are not UTF-8.
        clutter: absolute paths of files that operating systems create.
    """

    folder: Path
    images: tuple[Path, ...]
    others: tuple[tuple[Path, str], ...]
    problems: tuple[Problem, ...]
    clutter: tuple[Path, ...] = ()

    def name(self, path: Path) -> str:
        """Returns a path relative to the folder, with forward slashes."""
        return path.relative_to(self.folder).as_posix()

    def below(self, folder: Path) -> list[Path]:
        """Returns the images at any depth below a folder."""
        return [path for path in self.images if folder in path.parents]

    def subfolders(self, folder: Path) -> list[Path]:
        """Returns the direct subfolders of ``folder`` that hold images at any depth, sorted."""
        depth = len(folder.parts)
        return sorted({Path(*path.parts[: depth + 1]) for path in self.below(folder) if len(path.parts) > depth + 1})

    def left_out(self, used: Iterable[Path], reasons: Iterable[tuple[Path, str]] = ()) -> list[LeftOut]:
        """Returns the files that are not used, sorted by name.

        Args:
            used: absolute paths of the images and other files that are used.
            reasons: absolute paths of unused images with the reason, as far as it is known.
        """
        taken, known = set(used), dict(reasons)
        unused = [(path, known.get(path, "images that no record names")) for path in self.images]
        return sorted(LeftOut(self.name(path), why) for path, why in (*unused, *self.others) if path not in taken)


def list_folder(folder: Path) -> FolderListing:
    """Lists and classifies every file below a folder.

    Args:
        folder: absolute path of the folder.
    """
    images: list[Path] = []
    others: list[tuple[Path, str]] = []
    problems: list[Problem] = []
    clutter: list[Path] = []
    for path, reason in _walk(folder, (os.path.realpath(folder),), ""):
        name = path.relative_to(folder).as_posix()
        if reason == _CLUTTER:
            clutter.append(path)
        elif isinstance(reason, OSError):
            message, cure = f"the folder cannot be opened ({reason.strerror})", "Give yourself the right to read it"
            problems.append(Problem(name, "unreadable folder", message, cure))
        elif not _is_utf8(name):
            message, cure = "the name is not UTF-8", "Rename it, for example with: convmv -r -f latin1 -t utf8 FOLDER"
            problems.append(Problem(name, "file name", message, cure))
        elif reason:
            others.append((path, reason))
        elif not path.exists():
            if image_format(path) is None:
                others.append((path, "links that lead nowhere"))
            else:
                cure = "Restore the file that it points to, or remove the link"
                problems.append(Problem(name, "broken link", "is a link that leads nowhere", cure))
        elif not path.is_file():
            others.append((path, "pipes, sockets or devices"))
        elif image_format(path) is None:
            others.append((path, "files that are not read as images"))
        else:
            images.append(path)
    return FolderListing(folder, tuple(sorted(images)), tuple(sorted(others)), tuple(problems), tuple(clutter))


def _walk(folder: Path, above: Sequence[str], reason: str) -> Iterator[tuple[Path, str | OSError]]:
    """Yields every file below a folder, with the reason to leave it out ("" for none) or the error of opening it."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        yield folder, error
        return
    for path in entries:
        name = path.name.casefold()
        is_clutter = name in _CLUTTER_FILES or name.startswith("._") or (name in _CLUTTER_FOLDERS and path.is_dir())
        why = _CLUTTER if is_clutter else reason or ("hidden files" if name.startswith(".") else "")
        if not path.is_dir():
            yield path, why
            continue
        real = os.path.realpath(path)
        if real in above:
            yield path, "links to a folder that they lie in"
        else:
            yield from _walk(path, (*above, real), why)


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def summarise_left_out(files: Iterable[LeftOut]) -> list[str]:
    """Returns one line per reason, with the number of files and the names of the first ones."""
    groups: dict[str, list[str]] = {}
    for entry in sorted(files):
        groups.setdefault(entry.reason, []).append(entry.name)
    lines = []
    for reason, names in groups.items():
        named = ", ".join(names[:_EXAMPLES]) + (f" and {len(names) - _EXAMPLES} more" if len(names) > _EXAMPLES else "")
        lines.append(f"Left out, {reason} ({len(names)}): {named}.")
    return lines
