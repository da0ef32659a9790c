# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from bundle.data.csv_files import columns, read_csv
from bundle.data.errors import DataError

HEADER = "image,label,note,split\n"


def _csv(folder: Path, text: str) -> Path:
    path = folder / "t.csv"
    path.write_text(text, encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize(
    "rows",
    [
        'a.png,0,"x,train\nb.png,1,y,train\nc.png,0,z,test\n',  # never closed
        'a.png,0,"x,train\nb.png,1,"y",train\n',  # closed by the next one, within a cell
        'a.png,0,"x"y,train\n',
    ],
)
def test_quotation_marks_that_do_not_pair(tmp_path: Path, rows: str) -> None:
    with pytest.raises(DataError, match=r"the row that begins in line 3 .* stray quotation mark"):
        read_csv(_csv(tmp_path, f"{HEADER}0.png,0,,train\n{rows}"))


@pytest.mark.parametrize(
    ("rows", "last"),
    [
        ('a.png,0,"x,train\nb.png,1,y,train\nc.png,1,z",test\n', 5),
        ('a.png,0,"x,train\nb.png,1,y",train\n', 4),
        ('"a.png,0,x,train\nb.png",1,y,train\n', 4),
        ('a.png,0,x,"train\r\nb.png,1,y,train"\r\n', 4),
    ],
)
def test_stray_quotation_marks_swallow_no_rows(tmp_path: Path, rows: str, last: int) -> None:
    path = _csv(tmp_path, f"{HEADER}0.png,0,,train\n{rows}d.png,0,,train\n")
    with pytest.raises(DataError, match=f"lines 3 to {last} are one row by their quotation marks, but look like"):
        read_csv(path)
    assert columns(path) == ["image", "label", "note", "split"]


def test_free_text_may_have_lines_and_quotation_marks(tmp_path: Path) -> None:
    text = 'a.png,0,"clear lungs,\nno ""effusion"", heart normal\n\nsee above",train\nb.png,1,5" film,test\n'
    names, rows = read_csv(_csv(tmp_path, HEADER + text))
    assert names == ["image", "label", "note", "split"]
    assert [(line, cells[0], cells[3]) for line, cells in rows] == [(2, "a.png", "train"), (6, "b.png", "test")]
    assert rows[0][1][2].endswith("see above")
