# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Training of the audit's networks: the contrastive embedding and the Siamese verifier."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from monai.losses import ContrastiveLoss
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.utils.data import Dataset

from bundle.data import ImageData
from bundle.data.dataset import IDENTITY_SPLITS
from bundle.metrics.copies import PLANTED_CHANGES, copy_threshold
from bundle.metrics.recognition import predict
from bundle.networks.embeddings import ContrastiveEmbedding, SiameseVerifier
from bundle.networks.standardise import resized
from bundle.training.classifier_augment import augment_for_audit
from bundle.training.info import weights_info
from bundle.training.network_trainer import NetworkTrainer, TrainingTask, role_seed
from bundle.training.samplers import PairSampler

__all__ = [
    "AUDIT_NETWORKS",
    "AuditTrainer",
    "new_audit_network",
    "new_audit_trainer",
    "recognition_of_others",
    "verification_loss",
]

#: Every network of the audit by the name of its weight file.
AUDIT_NETWORKS: dict[str, type[ContrastiveEmbedding] | type[SiameseVerifier]] = {
    "audit_embedding": ContrastiveEmbedding,
    "audit_verifier": SiameseVerifier,
}

TEMPERATURE = 0.07
# Characters of an image's digest that the weights' JSON keeps: enough to tell images apart, by billions to one.
DIGEST = 16


def new_audit_network(name: str, data: ImageData, seed: int) -> ContrastiveEmbedding | SiameseVerifier:
    """Builds a network with random weights that depend on its name and the seed alone.

    Args:
        name: one of `AUDIT_NETWORKS`.
        data: gives the channels.
        seed: of both networks.
    """
    with torch.random.fork_rng():
        torch.manual_seed(role_seed(name, seed))
        return AUDIT_NETWORKS[name](data.modality.channels)


@dataclass(frozen=True)
class PairBatch:
    """Makes a training batch: changed images, both halves in the order of the patients.

    Attributes:
        side: pixels to which images are brought before they are changed.
    """

    side: int

    def __call__(
        self, batch: dict[str, Any], device: torch.device, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Returns images [2 B, C, side, side] and, for each patient, their number [B], on the device."""
        images = torch.as_tensor(batch["image"]).to(device, torch.float32, non_blocking=non_blocking)
        return augment_for_audit(resized(images, self.side)), torch.arange(len(images) // 2, device=device)


def verification_loss(logits: Tensor) -> Tensor:
    """Binary cross-entropy over all pairs of two halves, pairs of one patient and pairs of two weighing the same.

    Args:
        logits: [B, B] of "the same patient", true on the diagonal.
    """
    same = F.softplus(-logits.diagonal()).mean()
    other = ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    return (same + F.softplus(logits[other]).mean()) / 2


def recognition_of_others(similarity: Tensor, patients: Sequence[str]) -> dict[str, float]:
    """Says how well two different images of a patient (both eyes, two visits) are told from those of two patients.

    Copies are found by what an image shows; this asks whether a patient is known in an image that was never seen.

    Args:
        similarity: how similar two images are, [N, N]; of patients whom no network has seen.
        patients: whose image each is.

    Returns:
        ``pairs`` of two images of one patient; ``auc`` of their likeness against that of pairs of two patients; and
        ``first``, the share of images with a sibling whose most similar other image is one. Without such
        pairs, nothing but their number.
    """
    known = {patient: number for number, patient in enumerate(sorted(set(patients)))}
    owner = torch.tensor([known[patient] for patient in patients])
    same = (owner[:, None] == owner) & ~torch.eye(len(owner), dtype=torch.bool)
    pairs = int(same.sum()) // 2
    if not pairs:
        return {"pairs": 0}
    one, other = torch.triu_indices(len(owner), len(owner), offset=1)
    mutual = ((similarity + similarity.T) / 2).cpu()
    auc = roc_auc_score(same[one, other].numpy(), mutual[one, other].numpy())
    nearest = mutual.fill_diagonal_(-torch.inf).argmax(dim=1)
    asked = same.any(dim=1)
    first = same[torch.arange(len(owner)), nearest][asked].double().mean()
    return {"pairs": pairs, "auc": float(auc), "first": float(first)}


class AuditTrainer(NetworkTrainer):
    """Trains one network of the audit and writes its weights.

    The embedding minimises NT-Xent (Chen et al., arXiv 2002.05709; MONAI's ContrastiveLoss) at a temperature of 0.07,
    as Dar et al. do (arXiv 2402.01054), the verifier `verification_loss`. Pairs are of patients, and no patient comes
    twice in a batch, so that nobody is pushed away from themselves.

    The weights' JSON lists the beginnings of the SHA-256 of all images that the network saw: the audit refuses to hold
    images out that its networks know. Like the weights, that list belongs to whom the images belong.

    Args:
        name: one of `AUDIT_NETWORKS`: the name of the weight file.
        data: train and extra are shown; val and test are only measured.
        dataset: the images of these two splits, as `ImageData.dataset` gives them.
        network: trained in place.
        output_dir: gets the weights, see `NetworkTrainer`.
        device: where to train.
        batch_size: patients in a batch.
        seed: of both networks.
        **options: further arguments of `NetworkTrainer`, max_epochs at least; an epoch shows as
            many pairs as there are patients.

    Raises:
        TrainingError: there are too few patients, or the weights of another training are in the way.
    """

    def __init__(
        self,
        name: str,
        data: ImageData,
        dataset: Dataset[Any],
        network: ContrastiveEmbedding | SiameseVerifier,
        output_dir: str | os.PathLike[str],
        device: torch.device | str,
        batch_size: int = 100,
        seed: int = 0,
        **options: Any,
    ) -> None:
        patients = [data.identity(record) for record in data.records(IDENTITY_SPLITS)]
        sampler = PairSampler(patients, batch_size, role_seed(name, seed))
        settings = {"batch_size": batch_size, "content_sha256": data.content_sha256(IDENTITY_SPLITS)}
        task = TrainingTask(
            network,
            dataset,
            sampler,
            PairBatch(network.side),
            self._loss(network),
            weights_info(data, seed),
            settings,
        )
        super().__init__(name, task, output_dir, device, seed=seed, **options)
        self.data = data
        self.audited = network

    def measure(self) -> dict[str, Any]:
        """Returns how well copies are told from held-out images, and patients from each other; and what was seen."""
        known, _, _ = self.data.tensors(IDENTITY_SPLITS)
        gallery = predict(self.network, known)
        val, test = (predict(self.network, self.data.tensors(split)[0]) for split in ("val", "test"))
        patients = [record.patient_id for split in ("val", "test") for record in self.data.records(split)]

        def nearest(features: Tensor) -> Tensor:
            return self.audited.nearest(features, gallery)[0]

        threshold = copy_threshold(nearest(val))
        held_out = torch.cat([val, test])
        similarity = self.audited.similarity(held_out, held_out)
        copies = {"as they are": known, **{name: change(known) for name, change in PLANTED_CHANGES.items()}}
        scores = {
            "threshold": threshold,
            "found": {
                name: float((nearest(predict(self.network, images.clamp(-1.0, 1.0))) > threshold).double().mean())
                for name, images in copies.items()
            },
            "test_above": float((nearest(test) > threshold).double().mean()),
            "other_images": recognition_of_others(torch.cat(list(similarity)), patients),
        }
        seen = sorted(digest[:DIGEST] for digest in self.data.digests(IDENTITY_SPLITS))
        return {"scores": scores, "seen": seen}

    def accuracy(self, output: dict[str, Any]) -> float:
        """Returns the share of patients whose second image is the most similar of all second images to the first."""
        first, second = output["pred"].chunk(2)
        return float((self.audited.compare(first, second).argmax(dim=1) == output["label"]).float().mean())

    @staticmethod
    def _loss(network: ContrastiveEmbedding | SiameseVerifier) -> Callable[[Tensor, Tensor], Tensor]:
        if isinstance(network, SiameseVerifier):
            return lambda features, _: verification_loss(network.compare(*features.chunk(2)))
        contrastive = ContrastiveLoss(temperature=TEMPERATURE)
        return lambda points, _: contrastive(*points.chunk(2))


def new_audit_trainer(name: str, max_epochs: int, options: Mapping[str, Any]) -> AuditTrainer:
    """Builds a network of the audit and its trainer.

    Args:
        name: one of `AUDIT_NETWORKS`.
        max_epochs: see `AuditTrainer`.
        options: the arguments of `AuditTrainer` that both networks share: ``data`` and ``seed`` at least.

    Raises:
        TrainingError: see `AuditTrainer`.
    """
    network = new_audit_network(name, options["data"], options["seed"])
    return AuditTrainer(name, network=network, max_epochs=max_epochs, **options)
