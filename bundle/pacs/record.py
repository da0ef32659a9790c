# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The record of what a server has stored, by which a transfer that was interrupted resumes."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path

from bundle.files import write_text
from bundle.markup import csv_text, csv_value
from bundle.pacs.server import Instance, PacsError

__all__ = ["StoredRecord"]

COLUMNS = ["image", "study_instance_uid", "series_instance_uid", "sop_instance_uid"]


class StoredRecord:
    """A CSV file with one line for each object that a server has acknowledged.

    A line is added the moment the server acknowledges; half a line, of a process that was killed, is dropped.

    Args:
        path: the file; created with its folder if it does not exist.

    Raises:
        PacsError: the file is no such record.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._known = {instance.uid: instance for instance in self._read()}
        self._write()

    def __contains__(self, instance: Instance) -> bool:
        return instance.uid in self._known

    def add(self, instance: Instance) -> None:
        """Adds an object, unless it is there."""
        if instance in self:
            return
        self._known[instance.uid] = instance
        with open(self.path, "a", encoding="utf-8", newline="") as stream:
            stream.write(csv_text([_row(instance)]))

    def remove(self, instances: Iterable[Instance]) -> None:
        """Removes objects that the server does not have after all."""
        for instance in instances:
            self._known.pop(instance.uid, None)
        self._write()

    def _read(self) -> list[Instance]:
        if not self.path.exists():
            return []
        complete = self.path.read_bytes().rpartition(b"\n")[0]
        try:
            head, *rows = csv.reader(io.StringIO(complete.decode()), strict=True)
            if head != COLUMNS:
                raise ValueError(f"it has the columns {head}")
            return [Instance(*map(csv_value, row)) for row in rows]
        except (ValueError, TypeError, csv.Error) as error:
            raise PacsError(
                f"{self.path} is no record of stored images. Move it away, or name another output_dir."
            ) from error

    def _write(self) -> None:
        write_text(self.path, csv_text([COLUMNS, *map(_row, self._known.values())]))


def _row(instance: Instance) -> list[str]:
    return [instance.image, instance.study, instance.series, instance.uid]
