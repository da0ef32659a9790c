# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Finds the image file that a row of a table names, without confusing it with another one."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from bundle.data.errors import Problem
from bundle.data.listing import FolderListing
from bundle.data.readers import image_stem

__all__ = ["NamedImages"]


class NamedImages:
    """Index of the image files of a folder by the names that a table uses for them.

    Case and the Unicode encoding of accents are ignored, since file systems differ in both. Names may omit the file
    extension. They may omit the folder only where every row does: otherwise, a file of the same name in another folder
    (a mask, a heat map) would replace an image that is missing.

    Args:
        listing: listing of the data set's folder.
        home: absolute path of the folder that names are relative to.
        texts: all names in the table.
    """

    def __init__(self, listing: FolderListing, home: Path, texts: Iterable[str]) -> None:
        self.home = home
        self._folder = listing.folder
        self._here: dict[str, list[Path]] = defaultdict(list)
        self._below: dict[str, list[Path]] = defaultdict(list)
        self._alike: dict[str, list[Path]] = defaultdict(list)
        for path in listing.images:
            if home not in path.parents:
                continue
            relative, stem = path.relative_to(home), image_stem(path)
            whole, bare = {relative.as_posix(), relative.with_name(stem).as_posix()}, {path.name, stem}
            for index, names in ((self._here, set(map(_key, whole))), (self._below, set(map(_key, bare)))):
                for name in names:
                    index[name].append(path)
            for name in set(map(_letters, whole | bare)):
                self._alike[name].append(path)
        self._at = {text: self._exactly(text) for text in texts}
        self._by_path = any(self._at.values())

    def find(self, text: str, where: str, table: str) -> tuple[Path | None, Problem | None]:
        """Returns the path of the file that a row names, which need not exist, or the problem of the name.

        Args:
            text: one of the names in the table.
            where: description of the row, for the message.
            table: name of the table.
        """
        given = _given(text)
        if not text or given == PurePosixPath("."):
            return None, Problem(table, "missing name", f"{where} names no image", "Fill in or delete the line")
        name = given.as_posix()
        if ".." in given.parts or given.is_absolute():
            message = f"{where} points outside the folder"
            cure = "Move the image into the folder and give its path relative to the table"
            return None, Problem(name, "outside", message, cure)
        found = self._at[text] or ([] if self._by_path else self._same(self._below, name))
        if len(found) > 1:
            message = f"{where} may mean {self._shown(found)}"
            return None, Problem(name, "ambiguous name", message, "Give the name with its ending and folder")
        if found:
            return found[0], None
        if near := self._near(given):
            message = f"{where} names it, but there is no such file (did you mean {self._shown(near)}?)"
            if self._by_path and _key(name) in self._below:
                message += "; other lines of the table are whole paths, so that none is sought in other folders"
            cure = "Correct the name in the table, rename or restore the file, or delete the line"
            return None, Problem(name, "absent", message, cure)
        return self.home / given, None

    def _exactly(self, text: str) -> list[Path]:
        """Returns the files whose path is the text, without regard to case and file extension."""
        given = _given(text)
        if ".." in given.parts or given.is_absolute():
            return []
        # A backslash separates folders on Windows; on other systems, it may be part of a file's name.
        for path in (self.home / text, self.home / given):
            if path.exists() and not path.is_dir():
                return [path]
        return self._same(self._here, given.as_posix())

    def _same(self, index: dict[str, list[Path]], name: str) -> list[Path]:
        found = index.get(_key(name), [])
        alike = [path for path in found if unicodedata.normalize("NFC", path.relative_to(self.home).as_posix()) == name]
        return alike or found

    def _near(self, given: PurePosixPath) -> list[Path]:
        """Returns files whose names have the same letters and digits, to be suggested in a message."""
        stem = image_stem(Path(given))
        for name in (given.as_posix(), given.with_name(stem).as_posix(), given.name, stem):
            if (letters := _letters(name)) and letters in self._alike:
                return self._alike[letters]
        return []

    def _shown(self, paths: list[Path]) -> str:
        return " or ".join(path.relative_to(self._folder).as_posix() for path in paths[:3])


def _given(text: str) -> PurePosixPath:
    return PurePosixPath(text.replace("\\", "/"))


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, _key(name)))
