# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""How the C library's allocator treats memory that is freed and soon wanted again."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

# Of malloc.h: parameters of mallopt, see mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# The largest that glibc allows, and more than is ever free at the top of the heap at once.
LARGEST_MMAP_THRESHOLD, NEVER = 32 * 2**20, 2**30


def keep_freed_memory() -> bool:
    """Keeps glibc from handing freed memory back to the system while the process lives.

    Images are drawn a few at a time, so that the same megabytes come and go thousands of times. Whether glibc returns
    them each time depends on what happens to lie at the top of the heap; where it does, the kernel has to clear every
    page anew: millions of them for a large cohort.

    Returns:
        Whether there is a glibc and it agreed; elsewhere, nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER))
