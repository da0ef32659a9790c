# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""PLAN: privacy-preserving walks in the latent space of generative models of medical images."""
