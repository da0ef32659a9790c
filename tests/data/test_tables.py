# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from bundle.data.layouts import read_folder


def _csv(folder: Path, text: str) -> Path:
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    return folder


def test_labels_that_contradict_the_class_folders_are_noted(tmp_path: Path) -> None:
    names = ["normal/a.png", "tb/b.png", "covid/c.png", "1/d.png", "x/normal/e.png"]
    labels = ["normal", "normal", "covid", "normal", "tb"]
    rows = "".join(f"{name},{label}\n" for name, label in zip(names, labels, strict=True))
    assert read_folder(_csv(tmp_path, f"image,label\n{rows}")).notes == [
        "2 of 5 images lie in folders that are called after another class than the table gives them; the table counts: "
        "tb/b.png (normal), x/normal/e.png (tuberculosis)."
    ]
    assert read_folder(_csv(tmp_path, "image,label\nnormal/a.png,0\ntb/b.png,1\n")).notes == []


@pytest.mark.parametrize("column", ["Set", "fold", "subset", "partition", "Data_Split"])
def test_a_column_of_splits_by_another_name_is_noted(tmp_path: Path, column: str) -> None:
    (note,) = read_folder(_csv(tmp_path, f"image,label,{column}\na.png,0,Train\nb.png,1,test\nc.png,1,\n")).notes
    assert note.startswith(f"Column {column!r} of labels.csv says Train, test, but is not used")


@pytest.mark.parametrize("header", ["image,label,notes", "image,label,fold", "image,label,split,Set"])
def test_columns_that_hold_no_splits_or_beside_the_splits_are_left_alone(tmp_path: Path, header: str) -> None:
    cells = {"notes": ",train", "fold": ",3", "Set": ",train,train"}[header.split(",")[-1]]
    assert read_folder(_csv(tmp_path, f"{header}\na.png,0{cells}\nb.png,1{cells}\n")).notes == []


@pytest.mark.parametrize(("header", "layout"), [("source", "auto"), ("Scanner", {"source": "Scanner"})])
def test_source_of_an_image_is_read_where_a_column_names_it(
    tmp_path: Path, header: str, layout: str | dict[str, str]
) -> None:
    for name in "abc":
        (tmp_path / f"{name}.png").touch()
    folder = _csv(tmp_path, f"image,label,{header}\na.png,0, site  A \nb.png,1,unknown\nc.png,1,\n")
    assert [record.source for record in read_folder(folder, layout).records] == ["site A", None, None]
