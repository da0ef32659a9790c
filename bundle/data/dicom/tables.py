# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Reads and applies the lookup tables of DICOM: modality LUT, VOI LUT and palette colour."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from bundle.data.dicom.tags import tag_name, tag_values, wrong_tag

__all__ = ["look_up", "read_table", "white_of"]


def read_table(dataset: Dataset, item: Dataset, descriptor: str, data: str) -> tuple[NDArray[np.uint16], int]:
    """Returns the entries of a lookup table and the stored value of its first entry (DICOM PS3.3, C.11.1.1)."""
    order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
    head, content = tag_values(item, descriptor), tag_values(item, data)
    if head and isinstance(head[0], bytes):
        head = np.frombuffer(head[0], f"{order}u2").tolist()
    if len(head) != 3:
        raise wrong_tag(descriptor, "does not hold three numbers")
    # The standard defines whether the three numbers are signed, but many writers do not follow it.
    length, first = int(head[0]) % 2**16 or 2**16, int(head[1])
    if content and isinstance(content[0], bytes):
        narrow = len(content[0]) < 2 * length
        entries = np.frombuffer(content[0][: len(content[0]) // 2 * 2], "u1" if narrow else f"{order}u2")
    else:
        entries = (np.array(content, np.int64) % 2**16).astype(np.uint16)
        if len(entries) < length <= 2 * len(entries):  # each word holds two entries of 8 bits
            entries = entries.astype("<u2").view(np.uint8)
    if len(entries) < length:
        raise wrong_tag(data, f"has {len(entries)} entries, where {tag_name(descriptor)} says {length}")
    return entries[:length].astype(np.uint16), first


def look_up(table: NDArray[np.uint16], first: int, values: NDArray[Any]) -> NDArray[np.uint16]:
    """Maps each value to its entry; values outside of the table get the first or the last entry."""
    if first >= 2**15 and values.min() < 0:
        first -= 2**16  # a negative number written as unsigned
    elif first + len(table) <= 0 <= values.min():
        first += 2**16
    return table[np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)]


def white_of(*tables: NDArray[np.uint16]) -> float:
    """Returns the value of white: 2**n - 1, where n >= 8 is the number of bits of the largest entry.

    The declared number of bits is ignored, since tables of 12 bits often declare 16 and vice versa.
    """
    return 2.0 ** max(8, *(int(table.max()).bit_length() for table in tables)) - 1
