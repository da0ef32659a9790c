# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""DICOM images: from stored values through rescale and window to black is 0 and white is 1, upright."""

from bundle.data.dicom.reader import dicom_patient_id, read_dicom

__all__ = ["dicom_patient_id", "read_dicom"]
