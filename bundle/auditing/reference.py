# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Features of and distances among the real images: the slow part of an audit, which does not depend on the cohort."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from bundle.alignment import Views, aligned_correlation
from bundle.auditing.images import RealData, RealImages
from bundle.auditing.measures import other_images_auc
from bundle.auditing.patches import LOCAL, describe_cells, local_correlation
from bundle.figures import from_uint8, to_uint8
from bundle.files import sha256_file
from bundle.metrics.copies import HARD_COPIES, PLANTED_CHANGES
from bundle.metrics.features import squeezenet_features
from bundle.metrics.lpips import lpips_model, pairwise, pairwise_within
from bundle.metrics.recognition import predict
from bundle.networks.embeddings import ROWS, ContrastiveEmbedding, SiameseVerifier
from bundle.steps import Step, Steps, Tensors

__all__ = [
    "ALIGNED",
    "ALIGNED_MS",
    "BLOCK",
    "COPY_KINDS",
    "DETECTORS",
    "EMBEDDING",
    "EMBED_MS",
    "LOCAL_MS",
    "LPIPS_MS",
    "SQUEEZENET_MS",
    "VERIFIER",
    "Reference",
    "reference_key",
]

EMBEDDING, VERIFIER = "audit_embedding", "audit_verifier"
#: The detector of copies that were shifted, cropped, rotated, mirrored or bent.
ALIGNED = "aligned"
#: What seeks copies in single images: the embedding's correlation of whole images, local correlation, and correlation
#: after alignment.
DETECTORS = ("embedding", *LOCAL, ALIGNED)
# Training images nearest in the embedding that are aligned with an image. The original of a copy that was shifted,
# cropped, rotated, mirrored or bent is among them in at least 99 of 100 cases.
CANDIDATES = 4

#: Kinds of single copies that an audit seeks, to say what it would find.
COPY_KINDS = (*HARD_COPIES, *PLANTED_CHANGES)

# Number of images that are processed at a time.
BLOCK = 500
# Largest number of training images that are planted as copies under each alteration.
PLANTED = 400
# Number of these that suffice for the KID between altered and original images.
FAR = 100
# CPU-milliseconds per image at 128 px, from which the progress bar estimates the remaining time.
EMBED_MS, SQUEEZENET_MS, LPIPS_MS, LOCAL_MS, ALIGNED_MS = 1.0, 12.0, 25.0, 15.0, 20.0
# Bytes for LPIPS vectors; with less memory, the network has to process images more often.
MEMORY = 2**30
# Number of images whose vectors fit into this memory at 128 px.
KEPT = 500


def reference_key(
    real: RealData, infos: Mapping[str, Mapping[str, Any]], squeezenet_file: str | os.PathLike[str] | None
) -> dict[str, Any]:
    """Returns plain values that identify everything that a `Reference` depends on, except its seed.

    Args:
        real: real images of all roles.
        infos: content of the JSON file of each network, by name.
        squeezenet_file: file of the SqueezeNet 1.1 weights; None for those of torchvision.
    """
    return {
        **real.key(),
        "networks": {name: info["sha256"] for name, info in infos.items()},
        "trunk": sha256_file(squeezenet_file) if squeezenet_file else None,
    }


class Reference(Steps):
    """Real images with their features and distances, computed in steps that are kept on disk for all cohorts.

    Args:
        real: images of the roles ``train``, ``val`` and ``test``.
        networks: networks ``audit_embedding`` and ``audit_verifier``.
        folder: folder that keeps the results of the steps.
        seed: seed of the choice of ``train_sample`` and ``planted``.
        squeezenet_file: file of the SqueezeNet 1.1 weights; None for those that torchvision downloads or has cached.
        device: device of the computation.

    Attributes:
        train_sample: indices of a random sample of training images, at most as many as there are test images.
        planted: indices of the training images of which copies are planted.
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
        """Yields the steps in order."""
        n_real = sum(len(side.pixels) for side in self.real.values())
        for name in self.networks:
            yield self.step(name, EMBED_MS * n_real, lambda name=name: self._points(name))  # type: ignore[misc]
            cost = (EMBED_MS + 1.0) * len(self.planted) * (1 + len(PLANTED_CHANGES))
            yield self.step(f"{name}_planted", cost, lambda name=name: self._planted(name))  # type: ignore[misc]
        yield self.step("features", SQUEEZENET_MS * n_real, self._features)
        yield self.step("lpips", LPIPS_MS * n_real * (1 + n_real / KEPT / 2), self._among)

    def copies_steps(self) -> Iterator[Step]:
        """Yields the steps that seek single copies, one for each kind of copy, which only an audit asks for."""
        cost = (LOCAL_MS + ALIGNED_MS) * min(FAR, len(self.planted))
        for number, kind in enumerate(COPY_KINDS):
            yield self.step(f"copies_{number:02d}", cost, lambda kind=kind: self._copies(kind))  # type: ignore[misc]

    def copies(self, kind: str) -> Tensors:
        """Returns what the detectors find in copies of a kind, see `detected`."""
        return self.read(f"copies_{COPY_KINDS.index(kind):02d}")

    def search_step(self) -> Step:
        """Returns the step that seeks training images in held-out images, in part and aligned, for audits only."""
        n_held_out = sum(len(self.real[role].pixels) for role in ("val", "test"))
        return self.step("search", (LOCAL_MS + ALIGNED_MS) * n_held_out, self._search)

    def altered_step(self) -> Step:
        """Returns the step that computes features of planted copies under each alteration, for audits only."""
        cost = (SQUEEZENET_MS + 1.0) * min(FAR, len(self.planted)) * len(PLANTED_CHANGES)
        return self.step("altered_features", cost, self._altered)

    @cached_property
    def points(self) -> dict[str, Tensors]:
        """Outputs of each network by role; for val and test also correlation and index of the nearest train image."""
        return {name: self.read(name) for name in self.networks}

    @cached_property
    def features(self) -> Tensors:
        """SqueezeNet features [N, 512] of the images of each role."""
        return self.read("features")

    @cached_property
    def among(self) -> Tensor:
        """LPIPS [R, R] between all real images, in the order train, test, val."""
        return self.read("lpips")["distances"]

    def lpips(self, rows: str, columns: str) -> Tensor:
        """Returns LPIPS [N, M] between the images of the roles ``rows`` and ``columns``."""
        return self.among[self._places(rows)][:, self._places(columns)]

    def network(self, name: str) -> ContrastiveEmbedding | SiameseVerifier:
        """Returns a network by its name."""
        network = self.networks[name]
        assert isinstance(network, ContrastiveEmbedding | SiameseVerifier)
        return network

    def predict(self, name: str, pixels: Tensor) -> Tensor:
        """Returns the outputs [N, D] of a network for uint8 pixels [N, H, W] or [N, H, W, 3]."""
        return torch.cat([predict(self.network(name), from_uint8(block)) for block in pixels.split(BLOCK)])

    def measure_features(self, pixels: Tensor) -> Tensor:
        """Returns the SqueezeNet features [N, 512] of uint8 pixels."""
        parts = pixels.split(BLOCK)
        return torch.cat([squeezenet_features(from_uint8(p), self.squeezenet_file, device=self.device) for p in parts])

    def measure_lpips(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Returns LPIPS [N, M] between two sets of uint8 pixels, or [N, N] within ``x`` if ``y`` is None."""
        if self._lpips is None:
            self._lpips = lpips_model(self.squeezenet_file)
        options: dict[str, Any] = {"model": self._lpips, "memory": MEMORY, "device": self.device}
        if y is None:
            return pairwise_within(from_uint8(x), **options)
        return pairwise(from_uint8(x), from_uint8(y), **options)

    def compared(self, name: str, points: Tensor) -> Tensor:
        """Returns how similar images are to each training and each test image, [N, train + test], by a network.

        Args:
            name: the network.
            points: what it makes of the images, [N, D].
        """
        gallery = torch.cat([self.points[name][role] for role in ("train", "test")])
        return torch.cat(list(self.network(name).similarity(points, gallery)))

    def others(self, seen: Tensor, index: Tensor) -> Tensor:
        """Returns `bundle.auditing.measures.other_images_auc` [N] of images, by the verifier's similarity.

        Args:
            seen: outputs [N, D] of the verifier for the images.
            index: index [N] of the nearest training image.
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
        """Computes correlation and index of the training image that is the most similar one to each planted copy."""
        network = self.network(name)
        gallery = self.read(name)["train"]
        images = from_uint8(self.real["train"].pixels[self.planted])
        copies = {"exact": images, **{change: function(images) for change, function in PLANTED_CHANGES.items()}}
        result: Tensors = {}
        for change, changed in copies.items():
            correlation, index = network.nearest(predict(network, changed.clamp(-1.0, 1.0)), gallery)
            result |= {f"{change}_correlation": correlation, f"{change}_index": index}
        return result

    def detected(self, pixels: Tensor) -> Tensors:
        """Returns what each single-image detector finds in uint8 images: its correlation [N] and the index [N].

        The keys are ``<detector>`` and ``<detector>_index`` for each of `DETECTORS`.
        """
        points = self.predict(EMBEDDING, pixels)
        value, index = self.network(EMBEDDING).nearest(points, self.points[EMBEDDING]["train"])
        return {"embedding": value, "embedding_index": index, **self.search(pixels, points)}

    def search(self, pixels: Tensor, points: Tensor) -> Tensors:
        """Seeks training images in images: in part, mixed with others (`bundle.auditing.patches`), and aligned.

        The nearest training images are aligned with the images, and their detail is correlated, see `bundle.alignment`.

        Args:
            pixels: uint8 images [N, H, W] or [N, H, W, 3].
            points: what the embedding makes of them, [N, D].

        Returns:
            For each of these detectors the correlation [N] with the best training image and its index [N].
        """
        similar = torch.cat(list(self.network(EMBEDDING).similarity(points, self.points[EMBEDDING]["train"])))
        candidates = similar.topk(min(CANDIDATES, similar.shape[1]), dim=1).indices
        value, index = aligned_correlation(Views.of(pixels), self._train_views, candidates)
        return {
            **local_correlation(pixels, self._train_cells),
            ALIGNED: value,
            f"{ALIGNED}_index": index,
        }

    @cached_property
    def _train_cells(self) -> Tensor:
        return describe_cells(self.real["train"].pixels)

    @cached_property
    def _train_views(self) -> Views:
        return Views.of(self.real["train"].pixels)

    def _search(self) -> Tensors:
        points = self.points[EMBEDDING]
        return {
            f"{role}_{name}": value
            for role in ("val", "test")
            for name, value in self.search(self.real[role].pixels, points[role]).items()
        }

    def held_out(self, detector: str) -> tuple[Tensor, Tensor]:
        """Returns what a detector finds in the held-out images, [val + test], and whose image each one is."""
        if detector == "embedding":
            values = [self.points[EMBEDDING][f"{role}_correlation"] for role in ("val", "test")]
        else:
            kept = self.read("search")
            values = [kept[f"{role}_{detector}"] for role in ("val", "test")]
        patients = [self.real[role].patients for role in ("val", "test")]
        return torch.cat(values), torch.cat([patients[0], patients[1] + int(patients[0].max()) + 1])

    def _copies(self, kind: str) -> Tensors:
        chosen = self.planted[:FAR]
        members, test = from_uint8(self.real["train"].pixels[chosen]), self.real["test"].pixels
        if kind in HARD_COPIES:
            images = HARD_COPIES[kind](members, from_uint8(test[torch.arange(len(chosen)) % len(test)]))
        else:
            images = PLANTED_CHANGES[kind](members)
        return self.detected(torch.from_numpy(to_uint8(images.clamp(-1.0, 1.0))))

    def _features(self) -> Tensors:
        return {role: self.measure_features(side.pixels) for role, side in self.real.items()}

    def _altered(self) -> Tensors:
        images = from_uint8(self.real["train"].pixels[self.planted[:FAR]])
        changed = {name: to_uint8(change(images)) for name, change in PLANTED_CHANGES.items()}
        return {name: self.measure_features(torch.from_numpy(pixels)) for name, pixels in changed.items()}

    def _among(self) -> Tensors:
        return {"distances": self.measure_lpips(torch.cat([self.real[r].pixels for r in ("train", "test", "val")]))}
