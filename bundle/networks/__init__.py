# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Networks and their weight files."""

# Importing the modules registers their classes, so that weight files can name them.
from bundle.networks import classifiers as classifiers
from bundle.networks import embeddings as embeddings
from bundle.networks import imagenet_classifier as imagenet_classifier
from bundle.networks import latent_guides as latent_guides
from bundle.networks import projected as projected
from bundle.networks import realism as realism
from bundle.networks import stylegan2 as stylegan2
