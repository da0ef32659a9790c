# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Ways to make synthetic images, compared: what their images are worth, and whom they give away."""
