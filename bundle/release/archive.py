# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Archives whose bits depend on nothing but the names and contents of their files."""

from __future__ import annotations

import hashlib
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from bundle.cohort.ledger import CohortError

__all__ = ["write_archive"]

# The earliest time that the format has (APPNOTE.TXT, 4.4.6): archives must not tell when and where they were made.
_TIME = (1980, 1, 1, 0, 0, 0)
_UNIX = 3


def write_archive(path: Path, folder: Path, files: Mapping[str, str], root: str) -> None:
    """Writes files of a folder into a zip archive, in the order of their names.

    They are stored without compression: most are compressed already, and other versions of zlib would give other bits.

    Args:
        path: archive to write.
        folder: folder of the files.
        files: SHA-256 of each file by its name relative to the folder.
        root: name of the folder in the archive.

    Raises:
        CohortError: a file is not what its hash says, or the archive cannot be read back.
        OSError: a file cannot be read or written, for example because the disk is full.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in tqdm(sorted(files), "packing", unit="file"):
            content = (folder / name).read_bytes()
            if hashlib.sha256(content).hexdigest() != files[name]:
                raise CohortError(f"{name} was changed while it was packed. Run the same command again.")
            entry = zipfile.ZipInfo(f"{root}/{name}", _TIME)
            entry.create_system, entry.external_attr = _UNIX, (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, content)
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise CohortError(f"{damaged} cannot be read back from the archive. Run the same command again.")
