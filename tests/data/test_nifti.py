# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import itertools
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from bundle.data.readers import ReadError, decode

Drawing = Callable[..., NDArray[np.uint8]]


@pytest.mark.parametrize("affine", [None, np.diag([-0.2, -0.1, 1.0, 1.0])])
def test_voxels_become_square(tmp_path: Path, draw: Drawing, affine: NDArray[np.float64] | None) -> None:
    image = nibabel.Nifti1Image(draw(height=64, width=32).T, affine)
    image.header.set_zooms((0.2, 0.1))  # x, y
    nibabel.save(image, tmp_path / "a.nii.gz")
    decoded = decode(tmp_path / "a.nii.gz", 1)[0]
    assert decoded.shape == (64, 64)
    assert decoded[:16, :14].min() > 0.99  # the mark top left, 8 voxels wide, is 16 pixels wide
    assert decoded[:16, 18:].max() < 0.7


@pytest.mark.parametrize("zooms", [(1.0, 1.0), (0.143, 0.143), (0.0, 0.0)])
def test_square_voxels_keep_every_bit(tmp_path: Path, draw: Drawing, zooms: tuple[float, float]) -> None:
    image = nibabel.Nifti1Image(draw().T, None)
    image.header.set_zooms(zooms)
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_array_equal(decode(tmp_path / "a.nii", 1)[0], np.divide(draw(), 255.0, dtype=np.float32))


def test_zooms_that_no_voxel_has(tmp_path: Path, draw: Drawing) -> None:
    image = nibabel.Nifti1Image(draw().T, None)
    image.header["pixdim"][1:3] = 0.1, 7.0
    nibabel.save(image, tmp_path / "a.nii")
    with pytest.raises(ReadError, match="pixdim") as caught:
        decode(tmp_path / "a.nii", 1)
    assert caught.value.kind == "wrong tag"


@pytest.mark.parametrize(("shape", "offset"), [((30_000, 30_000), 352), ((10_000, 9_000), 352), ((64, 64), 9e8)])
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_headers_that_claim_too_much(tmp_path: Path, shape: tuple[int, int], offset: float, suffix: str) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.float64)
    header.set_data_shape(shape)
    header["vox_offset"], header["magic"] = offset, b"n+1"
    content = header.binaryblock + bytes(1000)
    (tmp_path / f"a.{suffix}").write_bytes(gzip.compress(content) if suffix == "nii.gz" else content)
    with pytest.raises(ReadError, match=r"its header says .* are read") as caught:
        decode(tmp_path / f"a.{suffix}", 1)
    assert caught.value.kind == "too large"


def test_nifti_2(tmp_path: Path, draw: Drawing) -> None:
    nibabel.save(nibabel.Nifti2Image(draw().T, None), tmp_path / "a.nii")
    np.testing.assert_allclose(decode(tmp_path / "a.nii", 1)[0], draw() / 255, atol=1e-6)


def test_complex_voxels_are_refused(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((40, 50), np.complex64), None), tmp_path / "a.nii")
    with pytest.raises(ReadError) as caught:
        decode(tmp_path / "a.nii", 1)
    assert caught.value.kind == "unknown format"


@pytest.mark.parametrize("names", ["RGB", "RGBA"])
def test_colour_voxels_keep_every_bit_and_are_turned_upright(tmp_path: Path, draw: Drawing, names: str) -> None:
    planes = {"R": draw(0), "G": draw(1), "B": draw(2) // 2, "A": np.full_like(draw(), 255)}
    picture = np.stack([planes[name] for name in names], axis=-1)
    as_type = picture.view(np.dtype([(name, "u1") for name in names]))[..., 0].T[..., None]
    as_intent = picture.swapaxes(0, 1)[:, :, None, None]
    for voxels, affine in itertools.product((as_type, as_intent), (None, np.eye(4))):
        array = voxels if affine is None else np.flip(voxels, (0, 1))
        image = nibabel.Nifti1Image(np.ascontiguousarray(array), affine)
        if voxels is as_intent:
            image.header.set_intent(f"{names.lower()} vector")
        nibabel.save(image, tmp_path / "a.nii")
        decoded = decode(tmp_path / "a.nii", 3, strict=True)
        np.testing.assert_array_equal(decoded, np.divide(picture[..., :3].transpose(2, 0, 1), 255.0, dtype=np.float32))
    with pytest.raises(ReadError, match="is in colour, where the modality has one channel"):
        decode(tmp_path / "a.nii", 1, strict=True)
    image.header.set_intent("none")
    nibabel.save(image, tmp_path / "b.nii")
    with pytest.raises(ReadError, match="NIfTI of shape"):  # several grey images
        decode(tmp_path / "b.nii", 3)
    image = nibabel.Nifti1Image(np.zeros((40, 50, 1, 1, 3), np.int16), None)
    image.header.set_intent("rgb vector")
    nibabel.save(image, tmp_path / "b.nii")
    with pytest.raises(ReadError, match="NIfTI of colour voxels of type int16"):
        decode(tmp_path / "b.nii", 3)
    luma = picture[..., :3] @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(decode(tmp_path / "a.nii", 1)[0], luma / 255, atol=1 / 255)


def test_a_compressed_file_is_read_to_its_checksum(tmp_path: Path, draw: Drawing) -> None:
    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(draw(height=96, width=96), None), path)
    content = path.read_bytes()
    for damaged in (content[:-8] + bytes(8), content[: len(content) // 2] + bytes(len(content) // 2)):
        path.write_bytes(damaged)
        with pytest.raises(ReadError, match="Copy it again from the source"):
            decode(path, 1)
    path.write_bytes(content + bytes(512))  # padding
    decode(path, 1)


def test_a_compressed_file_that_does_not_end(tmp_path: Path, draw: Drawing, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(draw(), None), path)
    path.write_bytes(path.read_bytes() + gzip.compress(bytes(2**25)))
    monkeypatch.setattr("bundle.data.nifti.MAX_BYTES", 10**6)
    with pytest.raises(ReadError, match="inflates to more than") as caught:
        decode(path, 1)
    assert caught.value.kind == "too large"
