# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Initialisation of a GAN from trained weights of the same or a lower resolution, and of a classifier."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from bundle.networks.classifiers import Classifier
from bundle.networks.projected import ProjectedDiscriminator
from bundle.networks.stylegan2 import Discriminator, Generator
from bundle.networks.weights import WeightsError, load_weights, read_info

__all__ = [
    "DEFAULT_RESOLUTION",
    "default_resolution",
    "discriminator_beside",
    "initialise_classifier",
    "initialise_gan",
]

#: Side in pixels for training from random weights, which is faster at a low resolution; the result can initialise a GAN
#: of twice the resolution.
DEFAULT_RESOLUTION = 64


def default_resolution(generator: str | os.PathLike[str] | None) -> int:
    """Returns the resolution of a generator's weights, or `DEFAULT_RESOLUTION` if there are none.

    Args:
        generator: path of a ``generator.pt``, with its JSON beside it, that need not exist.

    Raises:
        WeightsError: the JSON is missing or damaged, or does not describe a generator.
    """
    if generator is None or not Path(generator).is_file():
        return DEFAULT_RESOLUTION
    info = read_info(generator, ("arguments.resolution",))
    if info["network"] != Generator.__name__:
        raise WeightsError(f"{generator} holds a {info['network']}, which is no generator. Name a generator.pt.")
    return int(info["arguments"]["resolution"])


def discriminator_beside(path: Path) -> Path:
    """Returns the path of the discriminator that belongs to a ``generator.pt``."""
    return path.with_name(path.name.replace("generator", "discriminator"))


def initialise_gan(
    generator: Generator,
    discriminator: Discriminator | ProjectedDiscriminator,
    init_from: str | os.PathLike[str] | None,
) -> tuple[Generator, Discriminator | ProjectedDiscriminator]:
    """Initialises a GAN with trained weights; None leaves it unchanged.

    Blocks are named by resolution. Weights that the source lacks keep their random values, except that the image layers
    of the generator's new blocks start at zero, so that the grown generator produces upscaled images of the source.

    Args:
        generator: generator to initialise, in place.
        discriminator: discriminator to initialise, in place.
        init_from: ``generator.pt`` with its JSON, and ``discriminator.pt`` with its JSON beside it.

    Returns:
        The two networks.

    Raises:
        WeightsError: files are missing or damaged, differ in more than the resolution, or have a higher one.
    """
    if init_from is not None:
        path = Path(init_from)
        _fill(generator, path)
        _fill(discriminator, discriminator_beside(path))
    return generator, discriminator


def initialise_classifier(network: Classifier, path: Path) -> None:
    """Initialises a classifier with trained weights, without the last layer if that is for other patients or classes.

    Args:
        network: classifier to initialise, in place.
        path: its weights, ``<name>.pt`` with its JSON. They must not have been trained on images that are val or test
            images now.

    Raises:
        WeightsError: files are missing or damaged, or differ in more than the number of patients or classes.
    """
    source, info = load_weights(path)
    wanted, found = ({**given, "num_classes": 0} for given in (network.arguments, info["arguments"]))
    if type(source) is not type(network) or wanted != found:
        raise WeightsError(
            f"{path} holds {info['network']}({info['arguments']}), which cannot start {type(network).__name__}"
            f"({network.arguments}). Name a folder of models of the same modality."
        )
    _copy_equal_shapes(source, network)


def _copy_equal_shapes(source: nn.Module, network: nn.Module) -> None:
    own = network.state_dict()
    given = {key: value for key, value in source.state_dict().items() if own[key].shape == value.shape}
    network.load_state_dict({**own, **given}, strict=True)


def _fill(network: Generator | Discriminator | ProjectedDiscriminator, path: Path) -> None:
    source, info = load_weights(path)
    wanted, found = network.arguments, info["arguments"]
    differing = sorted(
        name for name in wanted if name != "resolution" and wanted[name] != found.get(name, wanted[name])
    )
    shrinks = int(found.get("resolution", 0)) > int(wanted.get("resolution", 0))
    if type(source) is not type(network) or differing or shrinks:
        raise WeightsError(
            f"{path} holds {info['network']}({found}), which cannot start {type(network).__name__}({wanted}). Name "
            f"weights that differ in the resolution alone, and not in a higher one."
        )
    # The width of the layer that reads the image depends on the resolution.
    _copy_equal_shapes(source, network)
    if isinstance(network, Generator):
        for name, value in network.named_parameters():
            side = name.split(".")[2] if name.startswith("synthesis.blocks.") else "0"
            if int(side) > int(found["resolution"]) and name.endswith("to_image.conv.weight"):
                nn.init.zeros_(value)
