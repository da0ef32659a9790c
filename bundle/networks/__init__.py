# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Networks and their weights on disk."""

# Importing the modules registers their classes, which weight files name.
from bundle.networks import guides as guides
from bundle.networks import stylegan2 as stylegan2
