# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Training of the audit networks: the contrastive embedding and the Siamese verifier."""

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

#: Class of each audit network, by the name of its weight file.
AUDIT_NETWORKS: dict[str, type[ContrastiveEmbedding] | type[SiameseVerifier]] = {
    "audit_embedding": ContrastiveEmbedding,
    "audit_verifier": SiameseVerifier,
}

TEMPERATURE = 0.07
# Leading characters of each image's digest in the weights' JSON; collisions are negligible at this length.
DIGEST = 16


def new_audit_network(name: str, data: ImageData, seed: int) -> ContrastiveEmbedding | SiameseVerifier:
    """Builds an audit network with random weights that depend on its name and the seed alone.

    Args:
        name: one of `AUDIT_NETWORKS`.
        data: training images, which determine the number of channels.
        seed: random seed shared by both audit networks; each derives its own from it.
    """
    with torch.random.fork_rng():
        torch.manual_seed(role_seed(name, seed))
        return AUDIT_NETWORKS[name](data.modality.channels)


@dataclass(frozen=True)
class PairBatch:
    """Makes a training batch of two augmented images of each patient: two halves in the same order of patients.

    Attributes:
        side: side in pixels to which images are resized before augmentation.
    """

    side: int

    def __call__(
        self, batch: dict[str, Any], device: torch.device, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Returns images [2 B, C, side, side] and the patients' indices in the batch [B], on the device."""
        images = torch.as_tensor(batch["image"]).to(device, torch.float32, non_blocking=non_blocking)
        return augment_for_audit(resized(images, self.side)), torch.arange(len(images) // 2, device=device)


def verification_loss(logits: Tensor) -> Tensor:
    """Binary cross-entropy over all pairs of the two halves, with equal weight for pairs of one and of two patients.

    Args:
        logits: logits of "same patient", [B, B], positive pairs on the diagonal.
    """
    same = F.softplus(-logits.diagonal()).mean()
    other = ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    return (same + F.softplus(logits[other]).mean()) / 2


def recognition_of_others(similarity: Tensor, patients: Sequence[str]) -> dict[str, float]:
    """Measures how well different images of one patient (both eyes, two visits) are told from images of two patients.

    Copy detection compares the content of images; this measures whether a patient is recognised in an unseen image.

    Args:
        similarity: pairwise similarity of images, [N, N], of patients that no network was trained on.
        patients: patient of each image.

    Returns:
        ``pairs``: number of pairs of two images of one patient; ``auc`` of their similarity against that of pairs of
            two patients; ``first``: share of images with at least one such partner whose most similar other image is a
            partner. Without such pairs, ``pairs`` alone.
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
    """Trains one audit network and writes its weights.

    The embedding minimises NT-Xent (Chen et al., arXiv 2002.05709; MONAI's ContrastiveLoss) at a temperature of 0.07,
    as in Dar et al. (arXiv 2402.01054), the verifier `verification_loss`. Positive pairs are images of one patient. No
    patient occurs twice in a batch, so that negative pairs are always of two patients.

    The weights' JSON lists truncated SHA-256 digests of all training images, so that the audit can refuse held-out
    images that its networks were trained on. Like the weights, this list is as confidential as the images.

    Args:
        name: one of `AUDIT_NETWORKS`, the name of the weight file.
        data: data set; its splits train and extra are trained on, val and test are measured.
        dataset: images of train and extra, as returned by `ImageData.dataset`.
        network: network to train, in place.
        output_dir: folder that receives the weights, see `NetworkTrainer`.
        device: device to train on.
        batch_size: patients per batch.
        seed: random seed shared by both audit networks.
        **options: further arguments of `NetworkTrainer`, at least max_epochs; an epoch has as many pairs as patients.

    Raises:
        TrainingError: there are fewer than two patients, or the folder holds the weights of another training.
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
        """Returns scores of copy detection and patient recognition, and truncated digests of all training images."""
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
        """Returns the share of patients whose second image is the most similar of all second images to their first."""
        first, second = output["pred"].chunk(2)
        return float((self.audited.compare(first, second).argmax(dim=1) == output["label"]).float().mean())

    @staticmethod
    def _loss(network: ContrastiveEmbedding | SiameseVerifier) -> Callable[[Tensor, Tensor], Tensor]:
        if isinstance(network, SiameseVerifier):
            return lambda features, _: verification_loss(network.compare(*features.chunk(2)))
        contrastive = ContrastiveLoss(temperature=TEMPERATURE)
        return lambda points, _: contrastive(*points.chunk(2))


def new_audit_trainer(name: str, max_epochs: int, options: Mapping[str, Any]) -> AuditTrainer:
    """Builds an audit network and its trainer.

    Args:
        name: one of `AUDIT_NETWORKS`.
        max_epochs: see `AuditTrainer`.
        options: arguments of `AuditTrainer` that both networks share, at least ``data`` and ``seed``.

    Raises:
        TrainingError: see `AuditTrainer`.
    """
    network = new_audit_network(name, options["data"], options["seed"])
    return AuditTrainer(name, network=network, max_epochs=max_epochs, **options)
