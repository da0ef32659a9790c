# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The names that configurations and the command line use; everything behind them lives in the package ``bundle``."""

from bundle.data import check_data as check_data
from bundle.data import open_dataset as open_dataset
