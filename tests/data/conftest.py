# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Small images and folders that the tests draw themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

Drawing = Callable[..., NDArray[np.uint8]]
DicomWriter = Callable[..., FileDataset]
FolderMaker = Callable[..., Path]


@pytest.fixture(scope="session")
def draw() -> Drawing:
    """Returns a function (seed, height, width) -> uint8 [H, W]: noise, a white mark top left, a grey bar right."""

    def drawing(seed: int = 0, height: int = 40, width: int = 56) -> NDArray[np.uint8]:
        pixels = np.random.default_rng(seed).integers(0, 64, (height, width), dtype=np.uint8)
        pixels[: height // 4, : width // 4] = 255
        pixels[:, -(width // 8) :] = 140
        return pixels

    return drawing


@pytest.fixture(scope="session")
def write_dicom() -> DicomWriter:
    """Returns a function that writes grey pixels [H, W] (or frames [F, H, W]) with any further DICOM elements."""

    def write(path: Path, pixels: NDArray[Any], photometric: str = "MONOCHROME2", **elements: Any) -> FileDataset:
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        bits = 8 * pixels.dtype.itemsize
        dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric
        dataset.Rows, dataset.Columns = pixels.shape[-2:]
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
        dataset.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
        if pixels.ndim == 3:
            dataset.NumberOfFrames = len(pixels)
        for name, value in elements.items():
            setattr(dataset, name, value)
        dataset.PixelData = pixels.tobytes()
        pydicom.dcmwrite(path, dataset, enforce_file_format=True)
        return dataset

    return write


@pytest.fixture
def make_folder(tmp_path: Path, draw: Drawing) -> FolderMaker:
    """Returns a function that draws images into a labels.csv folder; rows are (image, label, patient_id, split)."""

    def make(rows: list[tuple[str, object, str, str]] | None = None, per_class: int = 12) -> Path:
        folder = tmp_path / "images"
        folder.mkdir()
        if rows is None:
            rows = [(f"{i:02d}.png", i % 2, f"p{i}", "") for i in range(2 * per_class)]
        for seed, (name, *_) in enumerate(rows):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw(seed)).save(folder / name)
        lines = ["image,label,patient_id,split", *(",".join(map(str, row)) for row in rows)]
        (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return folder

    return make
