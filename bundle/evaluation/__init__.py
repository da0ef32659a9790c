# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The evaluation: arms of synthetic images, compared by utility and privacy."""
