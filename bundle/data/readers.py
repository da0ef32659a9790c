# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Decoding of image files: upright, one or three channels, black is 0 and white is 1.

MONAI's own readers swap the axes of PNG, JPEG and DICOM images, leave MONOCHROME1 uninverted and know neither EXIF
orientation nor the VOI window; :class:`UprightReader` takes their place in ``LoadImaged``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from monai.config import PathLike
from monai.data import ImageReader
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array

__all__ = [
    "GREY",
    "IMAGE_SUFFIXES",
    "MIN_CONTRAST",
    "MIN_SIDE",
    "ROBUST_PERCENTILES",
    "ReadError",
    "UprightReader",
    "decode",
    "dicom_patient_id",
    "image_suffix",
    "is_dicom",
    "pixel_sha256",
]

#: File endings that are read, and the format each one promises.
IMAGE_SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".dcm": "DICOM",
    ".dicom": "DICOM",
    ".nii": "NIfTI",
    ".nii.gz": "NIfTI",
}

#: Images without a known full scale (more than 8 bits: 12 bits often sit in a 16-bit file) run from the first of these
#: percentiles of their own values (black) to the second (white); the tails hold markers, dead pixels and padding.
ROBUST_PERCENTILES = (0.5, 99.5)

#: An image whose robust range is narrower than this share of the full scale is blank.
MIN_CONTRAST = 0.02

#: Mean range of the channels, as a share of the full scale, up to which an image shows no colour. Grey saved in colour
#: has 0, a tinted film little more; the palest of 1270 fundus photographs, black surround included, has 0.028.
GREY = 0.015

#: Pixels of the shorter side below which a file is no medical image.
MIN_SIDE = 16


class ReadError(Exception):
    """A file that cannot be turned into an image.

    Attributes:
        kind: short name of the sort of problem, as in :class:`bundle.data.errors.Problem`.
        message: what is wrong.
        cure: what to do about it.
    """

    def __init__(self, kind: str, message: str, cure: str) -> None:
        super().__init__(f"{message}. {cure}.")
        self.kind = kind
        self.message = message
        self.cure = cure


def image_suffix(path: Path) -> str:
    """Returns the file ending in lower case, ``.nii.gz`` counted as one."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


SUPPORTED_FORMATS = "PNG, JPEG, DICOM and NIfTI"


def image_format(path: Path) -> str | None:
    """Returns the format that a file is read as, or None for a file that is no image."""
    suffix = image_suffix(path)
    if suffix in IMAGE_SUFFIXES:
        return IMAGE_SUFFIXES[suffix]
    return "DICOM" if suffix == "" and path.is_file() and is_dicom(path) else None


def is_dicom(path: Path) -> bool:
    """Whether the file starts with a DICOM preamble."""
    with open(path, "rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def dicom_patient_id(path: Path) -> str | None:
    """Returns the PatientID of a DICOM file, or None when there is none or the file is no readable DICOM."""
    try:
        if not is_dicom(path):
            return None
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"])
    except Exception:  # unreadable files are reported when their pixels are read
        return None
    return str(header.get("PatientID") or "").strip() or None


def _content_format(path: Path) -> str | None:
    """Returns the format that the file's first bytes show, or None."""
    with open(path, "rb") as stream:
        head = stream.read(352)
    signatures = {
        b"\x89PNG": "PNG",
        b"\xff\xd8\xff": "JPEG",
        b"\x1f\x8b": "NIfTI",
        b"BM": "BMP",
        b"GIF8": "GIF",
        b"II*\0": "TIFF",
        b"MM\0*": "TIFF",
        b"%PDF": "PDF",
        b"PK\x03\x04": "ZIP",
    }
    if head[128:132] == b"DICM":
        return "DICOM"
    if head[344:347] in (b"n+1", b"ni1", b"n+2"):
        return "NIfTI"
    return next((name for signature, name in signatures.items() if head.startswith(signature)), None)


def _check_format(path: Path) -> str:
    """Returns the file's format; raises ReadError where name and content disagree."""
    if not path.is_file():
        raise ReadError("absent", "listed, but there is no such file", "Restore the file or delete its line")
    if path.stat().st_size == 0:
        raise ReadError("zero bytes", "the file is empty (0 bytes)", "Copy it again from the source, or remove it")
    promised = IMAGE_SUFFIXES.get(image_suffix(path)) or ("DICOM" if is_dicom(path) else None)
    if promised is None:
        raise ReadError(
            "unknown format",
            f"files ending in {path.suffix!r} are not read",
            "Save the image as PNG, JPEG, DICOM or NIfTI",
        )
    found = _content_format(path)
    if found is not None and found != promised:
        raise ReadError("wrong extension", f"named as {promised}, but its content is {found}", "Give it its true name")
    if found is None and promised in ("PNG", "JPEG", "NIfTI"):
        raise ReadError("unreadable", f"its content is no {promised} image", "Export or copy it again, or remove it")
    return promised


def _is_coloured(pixels: NDArray[Any]) -> bool:
    """Whether an image [H, W, 3], uint8 or float in [0, 1], shows colour; every n-th pixel of a large one is asked."""
    flat = pixels.reshape(-1, 3)
    spread = np.ptp(flat[:: (len(flat) // 2**18) | 1], axis=1).mean()
    return bool(spread > (255 * GREY if pixels.dtype == np.uint8 else GREY))


def _pil_array(image: Image.Image, channels: int, strict: bool) -> NDArray[Any]:
    """Returns [H, W] or [H, W, 3]: uint8 for 8-bit images, the file's own type for deeper ones."""
    if image.mode.startswith(("I", "F")):
        return np.asarray(image)
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "black")
        image = Image.alpha_composite(opaque, image.convert("RGBA"))
    if strict and channels == 1 and image.mode != "L" and _is_coloured(np.asarray(image.convert("RGB"))):
        cure = "Convert it to grey, or name the modality that these images are of"
        raise ReadError("in colour", "is in colour, where the modality has one channel", cure)
    return np.asarray(image.convert("L" if channels == 1 else "RGB"))


def _read_pil(path: Path, channels: int, strict: bool) -> NDArray[Any]:
    with Image.open(path) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise ReadError("3D volume", f"holds {frames} frames", "Save one frame as one file")
        image.load()
        pixels = _pil_array(ImageOps.exif_transpose(image), channels, strict)
    if pixels.dtype == np.uint8:
        return _full_scale(pixels)
    return _robust_scale(pixels.astype(np.float64))


def _read_dicom(path: Path, channels: int, strict: bool) -> NDArray[Any]:
    dataset = pydicom.dcmread(path)
    if "PixelData" not in dataset:
        raise ReadError("unreadable", "DICOM without pixel data (a report or a header)", "Remove it")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ReadError("3D volume", f"DICOM of {frames} frames", "Save the frame you mean as its own file")
    raw = pixel_array(dataset)
    if dataset.SamplesPerPixel == 3:
        return _full_scale(_pil_array(Image.fromarray(raw.astype(np.uint8)), channels, strict))
    if dataset.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2"):
        raise ReadError(
            "unknown format",
            f"DICOM of the colour kind {dataset.PhotometricInterpretation}",
            "Export it as MONOCHROME2, RGB or PNG",
        )
    padding = np.zeros(raw.shape, bool)
    if "PixelPaddingValue" in dataset:
        ends = sorted(
            (int(dataset.PixelPaddingValue), int(dataset.get("PixelPaddingRangeLimit", dataset.PixelPaddingValue)))
        )
        padding = (raw >= ends[0]) & (raw <= ends[1])
    values = apply_modality_lut(raw, dataset)
    window = apply_voi_lut(values, dataset)
    if dataset.get("VOILUTSequence"):
        scaled = window / (2.0 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1.0)
    elif "WindowWidth" in dataset and "WindowCenter" in dataset:
        # The window maps everything outside it to the ends of its output range, whatever the VOI function.
        low, high = apply_voi_lut(np.array([-1e9, 1e9]), dataset)
        scaled = (window - low) / (high - low)
    elif raw.dtype == np.uint8 and values is raw:
        scaled = _full_scale(raw)
    else:
        scaled = _robust_scale(values.astype(np.float64), ~padding)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        scaled = 1.0 - scaled
    # Padding is no tissue: black on every display, inverted or not.
    return np.where(padding, 0.0, scaled)


def _read_nifti(path: Path) -> NDArray[Any]:
    image: Any = nibabel.load(path)
    shape = image.shape
    axes = [axis for axis, length in enumerate(shape) if length > 1]
    if len(axes) != 2:
        sort = "3D volume" if len(axes) > 2 else "blank"
        raise ReadError(sort, f"NIfTI of shape {shape}", "Save one slice as a 2D NIfTI, or the image as PNG")
    values = np.asarray(image.dataobj).reshape([shape[axis] for axis in axes])
    if values.dtype.fields is not None:
        raise ReadError("unknown format", "NIfTI of colour voxels", "Save the image as PNG")
    codes: list[str] = ["L", "P"]
    if any(int(image.header[key]) > 0 for key in ("qform_code", "sform_code")) and max(axes) < 3:
        names = nibabel.aff2axcodes(image.affine)
        codes = [names[axis] or "" for axis in axes]
    # Upright: rows run down the patient (to I, or to P where the image is axial), columns to the patient's left (to P
    # in sagittal images), as on every light box.
    horizontal = next((axis for axis in (0, 1) if codes[axis] in ("L", "R")), None)
    if horizontal is None:
        horizontal = next((axis for axis in (0, 1) if codes[axis] in ("A", "P")), 0)
    vertical = 1 - horizontal
    if codes[horizontal] in ("R", "A"):
        values = np.flip(values, horizontal)
    if codes[vertical] in ("S", "A"):
        values = np.flip(values, vertical)
    values = values.transpose(vertical, horizontal)
    return _full_scale(values) if values.dtype == np.uint8 else _robust_scale(values.astype(np.float64))


def _full_scale(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.divide(pixels, 255.0, dtype=np.float32)


def _percentiles(values: NDArray[Any]) -> tuple[float, float]:
    """Returns :data:`ROBUST_PERCENTILES`, of every n-th value where there are more than a quarter of a million."""
    flat = values.reshape(-1)
    # The step is odd, so that it does not fall in with the width of the image, which seldom is.
    low, high = np.percentile(flat[:: (flat.size // 2**18) | 1], ROBUST_PERCENTILES)
    return float(low), float(high)


def _robust_scale(values: NDArray[np.float64], mask: NDArray[np.bool_] | None = None) -> NDArray[Any]:
    """Maps :data:`ROBUST_PERCENTILES` of the values (those under the mask) to 0 and 1; the caller clips."""
    if not np.isfinite(values).all():
        raise ReadError("not finite", "holds NaN or infinite values", "Replace them and save the image again")
    inside = values if mask is None or not mask.any() else values[mask]
    low, high = _percentiles(inside)
    if high <= low:
        raise ReadError("blank", f"all but a few pixels have the value {low:g}", "Remove it")
    return (values - low) / (high - low)


def pixel_sha256(image: NDArray[np.float32]) -> str:
    """Returns the SHA-256 of a decoded image's shape and pixels: the same however its file is called or coded."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def decode(path: str | Path, channels: int, strict: bool = False) -> NDArray[np.float32]:
    """Reads one PNG, JPEG, DICOM or 2D NIfTI file.

    8-bit images are divided by 255; deeper ones and NIfTI run from the 0.5th to the 99.5th percentile of their own
    values. DICOM images go through rescale slope and intercept (or the modality LUT) and the VOI LUT or the first
    window, whose output range becomes [0, 1]; without a window they are scaled like 16-bit images; MONOCHROME1 is
    inverted and padding is black (DICOM PS3.3, C.7.6.3.1.2, C.11.1 and C.11.2). EXIF orientation is applied. NIfTI is
    turned upright by its affine; one without any orientation is taken as (x to the right, y down), as ITK writes it.
    Colour becomes luma (ITU-R 601) where one channel is wanted, grey is repeated where three are; transparent parts are
    black.

    Args:
        path: the file.
        channels: 1 or 3.
        strict: whether colour is refused where one channel is wanted, and grey where three are.

    Returns:
        float32 [channels, H, W] in [0, 1].

    Raises:
        ReadError: the file is absent, empty, damaged, blank, no 2D image, holds NaN, or is not what its name says; or
            shows colour where it must not, or none where it must.
    """
    file = Path(path)
    try:
        form = _check_format(file)
        if form == "DICOM":
            image = _read_dicom(file, channels, strict)
        elif form == "NIfTI":
            image = _read_nifti(file)
        else:
            image = _read_pil(file, channels, strict)
        if strict and channels == 3 and (image.ndim == 2 or not _is_coloured(image)):
            cure = "Remove it, or name the modality that these images are of"
            raise ReadError("grey", "shows no colour, where the modality has three channels", cure)
    except ReadError:
        raise
    except Exception as error:
        # Every decoder has its own exceptions for damaged files; their text tells a cut-off file from other damage.
        text = " ".join(str(error).split()) or type(error).__name__
        cut = (
            "truncat",
            "expected",
            "end of",
            "ended",
            "broken",
            "length of the pixel data",
            "not enough",
            "less bytes",
        )
        if any(word in text.lower() for word in cut) or isinstance(error, EOFError):
            raise ReadError("truncated", f"the file is cut off ({text})", "Copy it again from the source") from error
        raise ReadError("unreadable", f"cannot be decoded ({text})", "Export it again, or remove it") from error
    if min(image.shape[:2]) < MIN_SIDE:
        raise ReadError("too small", f"only {image.shape[1]} x {image.shape[0]} pixels", "Use the original image")
    low, high = _percentiles(image)
    if high - low < MIN_CONTRAST:
        raise ReadError("blank", f"all but a few pixels are one grey ({high:.2f} of 1)", "Remove it")
    image = image[..., None] if image.ndim == 2 else image
    planes = np.moveaxis(np.broadcast_to(image, (*image.shape[:2], channels)), -1, 0)
    return np.clip(planes, 0.0, 1.0, dtype=np.float32, out=np.empty(planes.shape, np.float32), casting="same_kind")


class UprightReader(ImageReader):
    """MONAI image reader around :func:`decode`, for ``LoadImaged(reader=UprightReader(channels))``.

    Args:
        channels: 1 or 3.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether the name ends like one of the formats that are read."""
        names = [filename] if isinstance(filename, (str, os.PathLike)) else filename
        return all(image_suffix(Path(name)) in IMAGE_SUFFIXES for name in names)

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Path:
        """Returns the path; decoding waits for ``get_data``, since LoadImaged swallows errors raised here."""
        return Path(data if isinstance(data, (str, os.PathLike)) else data[0])

    def get_data(self, img: Path) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Returns (float32 [C, H, W] in [0, 1], metadata)."""
        image = decode(img, self.channels)
        return image, {"spatial_shape": np.array(image.shape[1:]), "original_channel_dim": 0}
