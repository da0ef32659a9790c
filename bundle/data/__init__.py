# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Reads real images: data set layouts, file formats, splits by patient, modality presets and MONAI transforms."""

from bundle.data.check_data import check_data
from bundle.data.checks import CheckReport, check_dataset
from bundle.data.dataset import ImageData, open_dataset
from bundle.data.errors import DataError, Problem
from bundle.data.layouts import LAYOUTS, DatasetDir
from bundle.data.modality import MODALITIES, Modality, get_modality
from bundle.data.records import SPLITS, Record
from bundle.data.shortcut import print_shortcut
from bundle.data.splits import Inventory, Splits, resolve_splits
from bundle.data.transforms import image_transform

__all__ = [
    "LAYOUTS",
    "MODALITIES",
    "SPLITS",
    "CheckReport",
    "DataError",
    "DatasetDir",
    "ImageData",
    "Inventory",
    "Modality",
    "Problem",
    "Record",
    "Splits",
    "check_data",
    "check_dataset",
    "get_modality",
    "image_transform",
    "open_dataset",
    "print_shortcut",
    "resolve_splits",
]
