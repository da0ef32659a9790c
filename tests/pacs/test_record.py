# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from bundle.pacs.record import StoredRecord
from bundle.pacs.server import Instance, PacsError

FIRST = Instance('images/=1, a"b.png', "2.25.1", "2.25.2", "2.25.3")
SECOND = Instance("images/b.png", "2.25.4", "2.25.5", "2.25.6")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sent" / "stored.csv"


def test_what_was_added_is_known_to_the_next_run(path: Path) -> None:
    record = StoredRecord(path)
    assert FIRST not in record
    record.add(FIRST)
    assert FIRST in record
    again = StoredRecord(path)
    assert FIRST in again and SECOND not in again
    again.add(SECOND)
    again.add(SECOND)
    assert path.read_text(encoding="utf-8").splitlines() == [
        "image,study_instance_uid,series_instance_uid,sop_instance_uid",
        '"images/=1, a""b.png",2.25.1,2.25.2,2.25.3',
        "images/b.png,2.25.4,2.25.5,2.25.6",
    ]
    again.remove([FIRST])
    assert FIRST not in again and FIRST not in StoredRecord(path) and SECOND in StoredRecord(path)


@pytest.mark.parametrize("lost", [1, 5, 30])
def test_half_a_line_of_a_killed_run_is_dropped(path: Path, lost: int) -> None:
    record = StoredRecord(path)
    record.add(FIRST)
    record.add(SECOND)
    path.write_bytes(path.read_bytes()[:-lost])
    again = StoredRecord(path)
    assert FIRST in again and SECOND not in again
    again.add(SECOND)
    assert SECOND in StoredRecord(path)


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"\xff\xfe\n", b'image,study_instance_uid\n"', None])
def test_other_file_is_left_alone(path: Path, content: bytes | None) -> None:
    StoredRecord(path)
    content = path.read_bytes() + b"too,few\n" if content is None else content
    path.write_bytes(content)
    with pytest.raises(PacsError, match=r"stored\.csv is no record of stored images\. Move it away"):
        StoredRecord(path)
    assert path.read_bytes() == content
