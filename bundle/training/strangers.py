# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""How much the identity guide makes of people whom it does not know: the bar of the walk's identity term.

The identity guide finds some likeness to its patients in every radiograph, also in those of other people. A walk that
lowers this likeness without a bar ends in images that resemble nobody, because they resemble no radiograph either. An
image in which the guide sees no more of its patients than in a stranger's is as safe as that, and is left alone.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from bundle.data import ImageData
from bundle.markup import markdown_table
from bundle.metrics.recognition import divergence_from_uniform, predict
from bundle.networks.classifiers import Classifier
from bundle.networks.weights import load_weights, write_info
from bundle.training.errors import TrainingError

__all__ = ["add_stranger_divergence", "stranger_divergence"]

# Quantiles of the divergence that are printed.
SHOWN = (0.05, 0.5, 0.95)


class _ClosedSet(nn.Module):
    """A classifier without its answer "nobody", as the walk asks it."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network.closed_set(image)


def stranger_divergence(network: Classifier, strangers: Tensor, quantile: float) -> float:
    """Returns a quantile of KL(uniform || softmax(phi_id)) over images of people whom the network does not know.

    Args:
        network: identity classifier in evaluation mode.
        strangers: validation images [N, C, H, W] in [-1, 1].
        quantile: share of the strangers below the result, see `bundle.data.Modality`.

    Returns:
        The divergence in nats; training patients lie far above it.
    """
    return float(_divergences(network, strangers).quantile(quantile))


def _divergences(network: Classifier, images: Tensor) -> Tensor:
    return divergence_from_uniform(predict(_ClosedSet(network), images, bf16=False)).double()


def add_stranger_divergence(data: ImageData, output_dir: str | os.PathLike[str]) -> None:
    """Adds the score ``stranger_divergence`` to a set whose identity guide was trained before there was one.

    Prints the divergence of training, validation and test images.

    Args:
        data: data set that the guide was trained on; val is the strangers.
        output_dir: folder of the set, which holds ``models/identity_guide.pt``.

    Raises:
        TrainingError: the guide was trained on other images or at another resolution, or there are no val images.
        WeightsError: its files are missing or damaged.
    """
    path = Path(output_dir) / "models" / "identity_guide.pt"
    network, info = load_weights(path)
    assert isinstance(network, Classifier)
    wanted = {"split_sha256": data.split_sha256, "resolution": data.resolution}
    differing = [key for key, value in wanted.items() if info.get(key) != value]
    if differing:
        raise TrainingError(
            f"{path} was trained on other images ({', '.join(differing)} differ). Name the dataset_dir, output_dir and "
            "resolution of its training."
        )
    images = {split: data.tensors(split)[0] for split in ("train", "val", "test")}
    strangers = images["val"]
    if not len(strangers):
        raise TrainingError("Strangers are val images, and the val split is empty. Give the dataset some.")
    value = stranger_divergence(network.eval(), strangers, data.modality.stranger_quantile)
    rows = [("identity divergence, nats", "images", *(f"{share:.0%}" for share in SHOWN))]
    for split, shown in images.items():
        if len(shown):
            quantiles = _divergences(network, shown).quantile(torch.tensor(SHOWN, dtype=torch.float64))
            rows.append((split, str(len(shown)), *(f"{float(value):.1f}" for value in quantiles)))
    print(markdown_table(rows))
    write_info(path, {**info, "scores": {**info["scores"], "stranger_divergence": value}})
    print(f"{path} has its stranger divergence now: {value:.3g} nats, by {len(strangers)} images.")
