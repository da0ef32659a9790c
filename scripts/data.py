# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Function that configs/check_data.json runs."""

from __future__ import annotations

from typing import Any

import bundle.data
from bundle.data import DataError

__all__ = ["check_data"]


def check_data(**options: Any) -> None:
    """Checks a data set, see `bundle.data.check_data`.

    Raises:
        SystemExit: with code 1, after the table or the message, if the data cannot be used.
    """
    try:
        problems = bundle.data.check_data(**options).problems
    except DataError as error:
        print(error)
        raise SystemExit(1) from error
    if problems:
        raise SystemExit(1)
