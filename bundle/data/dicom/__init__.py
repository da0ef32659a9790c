# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Reads DICOM images: applies rescale and window, turns them upright, and scales black to 0 and white to 1."""

from bundle.data.dicom.reader import dicom_patient_id, read_dicom

__all__ = ["dicom_patient_id", "read_dicom"]
