# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monai.data import Dataset

from bundle.data import DataError, open_dataset

FolderMaker = Callable[..., Path]


def test_tensors(make_folder: FolderMaker, tmp_path: Path) -> None:
    data = open_dataset(make_folder(), tmp_path / "output", resolution=32)
    assert data.class_names == ("normal", "tuberculosis")
    assert len(data.split_sha256) == 64
    images, labels, identities = data.tensors("train")
    assert type(images) is torch.Tensor
    assert images.shape == (data.n_identities, 1, 32, 32)
    assert images.dtype == torch.float32
    assert labels.dtype == identities.dtype == torch.int64
    assert labels.tolist() == [record.label for record in data.records("train")]
    assert sorted(identities.tolist()) == list(range(data.n_identities))
    assert (data.tensors(["val", "test"])[2] == -1).all()
    assert data.tensors("extra")[0].shape == (0, 1, 32, 32)


def test_dataset_and_tensors_agree(make_folder: FolderMaker, tmp_path: Path) -> None:
    data = open_dataset(make_folder(), tmp_path / "output", resolution=32)
    dataset = data.dataset("test")
    assert isinstance(dataset, Dataset)
    images, labels, identities = data.tensors("test")
    assert len(dataset) == len(images)
    for index in range(len(dataset)):
        item = dataset[index]
        assert torch.equal(item["image"], images[index])
        assert (item["label"], item["identity"]) == (labels[index], identities[index])


def test_images_of_one_patient_share_an_identity_and_extra_ones_have_one(
    make_folder: FolderMaker, tmp_path: Path
) -> None:
    rows = [(f"{i:02d}.png", i % 2, f"p{i}", ("train", "val", "test")[i % 3]) for i in range(30)]
    rows += [("left.png", 0, "p0", "train"), ("more.png", 1, "z", "extra")]
    data = open_dataset(make_folder(rows), tmp_path / "output", resolution=16)
    assert data.n_identities == 11
    identity = {record.name: data.identity(record) for record in data.records(["train", "extra"])}
    assert identity["left.png"] == identity["00.png"]
    assert identity["more.png"] == 10
    assert {data.identity(record) for record in data.records(["val", "test"])} == {-1}


def test_the_same_folder_gives_the_same_bits(make_folder: FolderMaker, tmp_path: Path) -> None:
    folder = make_folder()
    first, again = (open_dataset(folder, tmp_path / name, resolution=32) for name in ("a", "b"))
    assert first.split_sha256 == again.split_sha256
    for left, right in zip(first.tensors("train"), again.tensors("train"), strict=True):
        assert torch.equal(left, right)


def test_problems_stop_before_anything_is_written(make_folder: FolderMaker, tmp_path: Path) -> None:
    folder = make_folder()
    (folder / "03.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"03\.png: the file is empty.*Copy it again"):
        open_dataset(folder, tmp_path / "output")
    assert not (tmp_path / "output" / "private" / "splits.json").exists()


def test_an_unknown_split(make_folder: FolderMaker, tmp_path: Path) -> None:
    data = open_dataset(make_folder(), tmp_path / "output")
    with pytest.raises(DataError, match="unknown split 'training'"):
        data.records("training")


def test_the_shared_x_rays(shared_data: Path, tmp_path: Path) -> None:
    data = open_dataset(shared_data / "cxr", tmp_path, resolution=16)
    sizes = {split: len(data.records(split)) for split in ("train", "val", "test", "extra")}
    assert sizes == {"train": 800, "val": 116, "test": 230, "extra": 0}


def test_content_hash_knows_images_and_patients_but_no_names(make_folder: FolderMaker, tmp_path: Path) -> None:
    folder = make_folder()
    data = open_dataset(folder, tmp_path / "output", resolution=32)
    digests = data.digests("train")
    assert len(digests) == len(data.records("train"))
    assert not set(digests) & set(data.digests("test"))
    assert data.content_sha256("train") == open_dataset(folder, tmp_path / "other").content_sha256("train")
    assert data.content_sha256("train") != data.content_sha256("test")
    assert data.content_sha256("train") != data.with_preprocessing("plain").content_sha256("train")
    renamed = tmp_path / "renamed"
    for record in data.records(("train", "val", "test")):
        split = next(name for name in ("train", "val", "test") if record in data.records(name))
        target = renamed / split / data.class_names[record.label or 0] / f"other_{record.image.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(record.image.read_bytes())
    elsewhere = open_dataset(renamed, tmp_path / "elsewhere", resolution=32)
    assert elsewhere.content_sha256("train") == data.content_sha256("train")
