# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Writes images of a cohort as compressed NIfTI-1."""

from __future__ import annotations

import gzip
import io

import nibabel
import numpy as np

from bundle.cohort.image import CohortImage, cut_to_bytes

__all__ = ["nifti_bytes"]

# x to the left of a patient, y to the back, as ITK writes pictures: upright in viewers of axial slices.
_AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])
_SCANNER = 1
# Intent of images whose fifth dimension holds red, green and blue (NIfTI-1.1). MONAI cannot read the type RGB24.
_RGB_VECTOR = 2003
# Bytes of the header's field of free text, less its final zero.
_TEXT = 79


def nifti_bytes(image: CohortImage) -> bytes:
    """Encodes an image as ``.nii.gz`` with uint8 voxels [W, H, 1], or [W, H, 1, 1, 3] of the intent "RGB vector".

    Equal images give equal bytes: neither the header nor the compressed stream holds a name or a time.

    Args:
        image: image of the cohort.

    Returns:
        A file that `bundle.data.nifti.read_nifti` reads as the same upright picture.
    """
    is_grey = image.pixels.ndim == 2
    voxels = np.swapaxes(image.pixels, 0, 1)
    volume = nibabel.Nifti1Image(voxels[:, :, None] if is_grey else voxels[:, :, None, None], _AFFINE)
    volume.set_qform(_AFFINE, _SCANNER)
    volume.set_sform(_AFFINE, _SCANNER)
    volume.header["cal_max"] = 255  # the whole range: viewers choose another contrast where it is 0
    if not is_grey:
        volume.header.set_intent(_RGB_VECTOR)
    volume.header["descrip"] = cut_to_bytes(f"Synthetic image of class {image.label_name}", _TEXT).encode()
    stream = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=stream, compresslevel=6, mtime=0) as compressed:
        compressed.write(volume.to_bytes())
    return stream.getvalue()
