# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Real images, and what the audit's networks make of them: the slow part of an audit that all cohorts share."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from bundle.auditing.images import RealData, RealImages
from bundle.auditing.measures import other_images_auc
from bundle.figures import from_uint8, to_uint8
from bundle.files import sha256_file
from bundle.metrics.copies import PLANTED_CHANGES
from bundle.metrics.features import squeezenet_features
from bundle.metrics.lpips import lpips_model, pairwise, pairwise_within
from bundle.metrics.recognition import predict
from bundle.networks.embeddings import ROWS, ContrastiveEmbedding, SiameseVerifier
from bundle.steps import Step, Steps, Tensors

__all__ = ["BLOCK", "EMBEDDING", "EMBED_MS", "LPIPS_MS", "SQUEEZENET_MS", "VERIFIER", "Reference", "reference_key"]

EMBEDDING, VERIFIER = "audit_embedding", "audit_verifier"

# Images that pass the networks at once.
BLOCK = 500
# Training images that are planted under each change, at most.
PLANTED = 400
# Of these, how many are enough to tell how far a change takes a whole set of images.
FAR = 100
# CPU-milliseconds of one image at 128 px, so that the bar can tell the time left.
EMBED_MS, SQUEEZENET_MS, LPIPS_MS = 1.0, 12.0, 25.0
# Bytes that the vectors of LPIPS may take: less memory, and real images pass the network more often.
MEMORY = 2**30
# Images whose vectors that holds at 128 px.
KEPT = 500


def reference_key(
    real: RealData, infos: Mapping[str, Mapping[str, Any]], squeezenet_file: str | os.PathLike[str] | None
) -> dict[str, Any]:
    """Returns plain values that change with whatever a `Reference` depends on besides its seed.

    Args:
        real: images.
        infos: content of the JSON of each network.
        squeezenet_file: weights of SqueezeNet 1.1.
    """
    return {
        **real.key(),
        "networks": {name: info["sha256"] for name, info in infos.items()},
        "trunk": sha256_file(squeezenet_file) if squeezenet_file else None,
    }


class Reference(Steps):
    """Real images, and what networks make of them: the same for every cohort that is held against them.

    Args:
        real: images of the roles ``train``, ``val`` and ``test``.
        networks: ``audit_embedding`` and ``audit_verifier``.
        folder: keeps the steps.
        seed: of the training images that are drawn for the trial and for whatever takes distances among them.
        squeezenet_file: weights of SqueezeNet 1.1; None lets torchvision find them.
        device: where to compute.

    Attributes:
        train_sample: indices of as many training images as there are test images.
        planted: indices of the training images that copies are made of.
    """

    def __init__(
        self,
        real: dict[str, RealImages],
        networks: Mapping[str, nn.Module],
        folder: str | os.PathLike[str],
        seed: int,
        squeezenet_file: str | os.PathLike[str] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(folder)
        self.real = real
        self.networks = networks
        self.squeezenet_file = squeezenet_file
        self.device = torch.device(device)
        random = torch.Generator().manual_seed(seed)
        n_test, n_train = len(real["test"].pixels), len(real["train"].pixels)
        self.train_sample = torch.randperm(n_train, generator=random)[:n_test]
        self.planted = torch.randperm(n_train, generator=random)[:PLANTED]
        self._lpips: Any = None

    def steps(self) -> Iterator[Step]:
        """Yields the steps in their order."""
        n_real = sum(len(side.pixels) for side in self.real.values())
        for name in self.networks:
            yield self.step(name, EMBED_MS * n_real, lambda name=name: self._points(name))  # type: ignore[misc]
            cost = (EMBED_MS + 1.0) * len(self.planted) * (1 + len(PLANTED_CHANGES))
            yield self.step(f"{name}_planted", cost, lambda name=name: self._planted(name))  # type: ignore[misc]
        yield self.step("features", SQUEEZENET_MS * n_real, self._features)
        yield self.step("lpips", LPIPS_MS * n_real * (1 + n_real / KEPT / 2), self._among)

    def altered_step(self) -> Step:
        """Returns the step that takes features of planted copies under each change, which only an audit asks for."""
        cost = (SQUEEZENET_MS + 1.0) * min(FAR, len(self.planted)) * len(PLANTED_CHANGES)
        return self.step("altered_features", cost, self._altered)

    @cached_property
    def points(self) -> dict[str, Tensors]:
        """What each network makes of every real image, and the training image nearest to each held-out one."""
        return {name: self.read(name) for name in self.networks}

    @cached_property
    def features(self) -> Tensors:
        """Features [N, D] of the images of each role."""
        return self.read("features")

    @cached_property
    def among(self) -> Tensor:
        """LPIPS between all real images: those of train, then of test, then of val."""
        return self.read("lpips")["distances"]

    def lpips(self, rows: str, columns: str) -> Tensor:
        """Returns LPIPS [N, M] between the images of two roles."""
        return self.among[self._places(rows)][:, self._places(columns)]

    def network(self, name: str) -> ContrastiveEmbedding | SiameseVerifier:
        """Returns one of the networks."""
        network = self.networks[name]
        assert isinstance(network, ContrastiveEmbedding | SiameseVerifier)
        return network

    def predict(self, name: str, pixels: Tensor) -> Tensor:
        """Returns what a network makes of uint8 pixels [N, H, W] or [N, H, W, 3]."""
        return torch.cat([predict(self.network(name), from_uint8(block)) for block in pixels.split(BLOCK)])

    def measure_features(self, pixels: Tensor) -> Tensor:
        """Returns the features [N, D] of uint8 pixels."""
        parts = pixels.split(BLOCK)
        return torch.cat([squeezenet_features(from_uint8(p), self.squeezenet_file, device=self.device) for p in parts])

    def measure_lpips(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Returns LPIPS [N, M] between uint8 pixels of two sets, or [N, N] within one."""
        if self._lpips is None:
            self._lpips = lpips_model(self.squeezenet_file)
        options: dict[str, Any] = {"model": self._lpips, "memory": MEMORY, "device": self.device}
        if y is None:
            return pairwise_within(from_uint8(x), **options)
        return pairwise(from_uint8(x), from_uint8(y), **options)

    def others(self, seen: Tensor, index: Tensor) -> Tensor:
        """Returns `bundle.auditing.measures.other_images_auc` [N] of images by the verifier.

        Args:
            seen: what the verifier makes of them.
            index: [N], of the nearest training image.
        """
        gallery, patients = self.points[VERIFIER]["train"], self.real["train"].patients
        blocks = zip(self.network(VERIFIER).similarity(seen, gallery), index.split(ROWS), strict=True)
        return torch.cat([other_images_auc(correlation, nearest, patients) for correlation, nearest in blocks])

    def _places(self, role: str) -> slice:
        roles = ("train", "test", "val")
        sizes = [len(self.real[name].pixels) for name in roles]
        start = sum(sizes[: roles.index(role)])
        return slice(start, start + sizes[roles.index(role)])

    def _points(self, name: str) -> Tensors:
        network = self.network(name)
        points = {role: self.predict(name, side.pixels) for role, side in self.real.items()}
        found = {role: network.nearest(points[role], points["train"]) for role in ("val", "test")}
        points |= {f"{role}_correlation": correlation for role, (correlation, _) in found.items()}
        points |= {f"{role}_index": index for role, (_, index) in found.items()}
        return points

    def _planted(self, name: str) -> Tensors:
        """Correlation of planted copies with the most similar training image, and its index."""
        network = self.network(name)
        gallery = self.read(name)["train"]
        images = from_uint8(self.real["train"].pixels[self.planted])
        copies = {"exact": images, **{change: function(images) for change, function in PLANTED_CHANGES.items()}}
        result: Tensors = {}
        for change, changed in copies.items():
            correlation, index = network.nearest(predict(network, changed.clamp(-1.0, 1.0)), gallery)
            result |= {f"{change}_correlation": correlation, f"{change}_index": index}
        return result

    def _features(self) -> Tensors:
        return {role: self.measure_features(side.pixels) for role, side in self.real.items()}

    def _altered(self) -> Tensors:
        images = from_uint8(self.real["train"].pixels[self.planted[:FAR]])
        changed = {name: to_uint8(change(images)) for name, change in PLANTED_CHANGES.items()}
        return {name: self.measure_features(torch.from_numpy(pixels)) for name, pixels in changed.items()}

    def _among(self) -> Tensors:
        return {"distances": self.measure_lpips(torch.cat([self.real[r].pixels for r in ("train", "test", "val")]))}
