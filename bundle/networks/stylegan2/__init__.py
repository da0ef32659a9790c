# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""A class-conditional StyleGAN2, implemented from the papers.

Sources: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020 (StyleGAN2: weight
demodulation, skip generator, residual discriminator); Karras et al., "Progressive Growing of GANs", ICLR 2018
(equalised learning rate, minibatch standard deviation); Miyato and Koyama, "cGANs with Projection Discriminator",
ICLR 2018 (projection on the label).
"""

from bundle.networks.stylegan2.discriminator import Discriminator, minibatch_stddev
from bundle.networks.stylegan2.generator import Generator, MappingNetwork, SynthesisNetwork
from bundle.networks.stylegan2.layers import (
    RESOLUTIONS,
    EqualizedConv2d,
    EqualizedLinear,
    ModulatedConv2d,
    channels_at,
)

__all__ = [
    "RESOLUTIONS",
    "Discriminator",
    "EqualizedConv2d",
    "EqualizedLinear",
    "Generator",
    "MappingNetwork",
    "ModulatedConv2d",
    "SynthesisNetwork",
    "channels_at",
    "minibatch_stddev",
]
