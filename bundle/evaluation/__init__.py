# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The evaluation: compares utility and privacy of image sets (arms) that were made in different ways."""
