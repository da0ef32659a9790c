# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The gate: synthesis of the released pixels, and the networks that decide which images may be released."""
