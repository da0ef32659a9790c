# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Setting of the C library's allocator that keeps freed memory for reuse."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

# Parameters of mallopt(3), from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# The largest value that glibc allows, and a threshold that the free heap never reaches.
LARGEST_MMAP_THRESHOLD, NEVER = 32 * 2**20, 2**30


def keep_freed_memory() -> bool:
    """Prevents glibc from returning freed memory to the system while the process lives.

    Images are synthesised a few at a time, so the same megabytes are allocated and freed thousands of times. If glibc
    returns them to the system each time, which depends on the layout of the heap, the kernel must clear the pages anew.

    Returns:
        Whether the setting was applied; without glibc, nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER))
