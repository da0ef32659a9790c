# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The walk: objective, path, inferer, and distillation of the guides into latent guides."""
