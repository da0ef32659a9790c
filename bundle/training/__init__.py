# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Training of the GAN, the classifiers, the latent guides and the audit networks."""
