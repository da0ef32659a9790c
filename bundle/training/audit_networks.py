# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Training of the audit networks: the contrastive embedding and the Siamese verifier."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.losses import ContrastiveLoss
from torch import Tensor
from torch.utils.data import Dataset

from bundle.data import ImageData
from bundle.data.dataset import IDENTITY_SPLITS
from bundle.metrics.copies import PLANTED_CHANGES, copy_threshold
from bundle.metrics.recognition import predict
from bundle.metrics.reidentification import different_images, proof_images, recognition_of_others
from bundle.networks.embeddings import ContrastiveEmbedding, SiameseVerifier
from bundle.networks.standardise import resized
from bundle.networks.weights import load_weights
from bundle.training.classifier_augment import augment_for_audit
from bundle.training.errors import TrainingError
from bundle.training.info import weights_info
from bundle.training.network_trainer import NetworkTrainer, TrainingTask, role_seed
from bundle.training.samplers import OtherImageSampler, PairSampler

__all__ = [
    "AUDIT_NETWORKS",
    "AuditTrainer",
    "new_audit_network",
    "new_audit_trainer",
    "prove",
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


def prove(
    network: ContrastiveEmbedding | SiameseVerifier,
    data: ImageData,
    seed: int,
    splits: Sequence[str] = ("val", "test"),
) -> dict[str, Any]:
    """Measures how well a network recognises patients in other images, on the images of a data set.

    Two versions of one image are no other images: of those of one patient, only the first is used.

    Args:
        network: trained network in evaluation mode.
        data: data set, none of whose patients in ``splits`` the network has seen.
        seed: seed of the choice of images, if there are too many, and of the bootstrap.
        splits: splits whose images are used.

    Returns:
        See `bundle.metrics.reidentification.recognition_of_others`.
    """
    contents = zip(data.records(splits), data.digests(splits), strict=True)
    records = list({(record.patient_id, digest): record for record, digest in contents}.values())
    records = [records[index] for index in proof_images([record.patient_id for record in records], seed)]
    images, patients = data.load(records), [record.patient_id for record in records]
    used = different_images(images, patients)
    points = predict(network, images[used])
    similarity = torch.cat(list(network.similarity(points, points)))
    return recognition_of_others(similarity, [patients[index] for index in used], seed)


class AuditTrainer(NetworkTrainer):
    """Trains one audit network and writes its weights.

    The embedding minimises NT-Xent (Chen et al., arXiv 2002.05709; MONAI's ContrastiveLoss) at a temperature of 0.07,
    as in Dar et al. (arXiv 2402.01054), the verifier `verification_loss`. Positive pairs are images of one patient: the
    same image or two different ones, each augmented. No patient occurs twice in a batch, so that negative pairs are
    always of two patients. With ``pairs``, half of the positive pairs are two different images of one patient.

    The weights' JSON lists truncated SHA-256 digests of all training images, so that the audit can refuse held-out
    images that its networks were trained on. Like the weights, this list is as confidential as the images.

    Args:
        name: one of `AUDIT_NETWORKS`, the name of the weight file.
        data: data set; its splits train and extra are trained on, val and test are measured.
        dataset: images of train and extra, as returned by `bundle.training.audit_pairs.audit_dataset`.
        network: network to train, in place.
        output_dir: folder that receives the weights, see `NetworkTrainer`.
        device: device to train on.
        batch_size: patients per batch.
        seed: random seed shared by both audit networks.
        pairs: images of other people, several of each, from `bundle.training.audit_pairs.open_pairs`: their splits
            train and extra are trained on as well, and val and test show whether patients are recognised in other
            images; None for none, in which case the data set's val and test images show that.
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
        pairs: ImageData | None = None,
        inherited: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        patients = [data.identity(record) for record in data.records(IDENTITY_SPLITS)]
        sampler_class = PairSampler if pairs is None else OtherImageSampler
        if pairs is not None:
            patients += [data.n_identities + pairs.identity(record) for record in pairs.records(IDENTITY_SPLITS)]
        settings = {
            "batch_size": batch_size,
            "content_sha256": data.content_sha256(IDENTITY_SPLITS),
            "pairs_sha256": None if pairs is None else pairs.content_sha256(IDENTITY_SPLITS),
            "init_from_sha256": None if inherited is None else inherited["sha256"],
        }
        sampler = sampler_class(patients, batch_size, role_seed(name, seed))
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
        self.pairs = pairs
        self.seen = set() if inherited is None else set(inherited["seen"])
        self.audited = network

    def measure(self) -> dict[str, Any]:
        """Returns scores of copy detection and patient recognition, and truncated digests of all training images."""
        known, _, _ = self.data.tensors(IDENTITY_SPLITS)
        gallery = predict(self.network, known)
        val, test = (predict(self.network, self.data.tensors(split)[0]) for split in ("val", "test"))

        def nearest(features: Tensor) -> Tensor:
            return self.audited.nearest(features, gallery)[0]

        threshold = copy_threshold(nearest(val))
        copies = {"as they are": known, **{name: change(known) for name, change in PLANTED_CHANGES.items()}}
        scores = {
            "threshold": threshold,
            "found": {
                name: float((nearest(predict(self.network, images.clamp(-1.0, 1.0))) > threshold).double().mean())
                for name, images in copies.items()
            },
            "test_above": float((nearest(test) > threshold).double().mean()),
            "other_images": prove(self.audited, self.pairs or self.data, self.seed),
        }
        return {"scores": scores, "seen": sorted(self.seen | _digests((self.data, self.pairs), IDENTITY_SPLITS))}

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


def new_audit_trainer(name: str, max_epochs: int, init_from: str | None, options: Mapping[str, Any]) -> AuditTrainer:
    """Builds an audit network and its trainer.

    Args:
        name: one of `AUDIT_NETWORKS`.
        max_epochs: see `AuditTrainer`.
        init_from: folder of audit networks from which the training starts; None for random weights.
        options: arguments of `AuditTrainer` that both networks share, at least ``data`` and ``seed``.

    Raises:
        TrainingError: see `AuditTrainer`; or the network in init_from has seen images that are held out now, or is for
            another kind of image.
        WeightsError: there are no such weights in init_from.
    """
    data = options["data"]
    if init_from is None:
        network = new_audit_network(name, data, options["seed"])
        return AuditTrainer(name, network=network, max_epochs=max_epochs, **options)
    path = Path(init_from) / f"{name}.pt"
    loaded, inherited = load_weights(path, required=("modality", "preprocessing", "seen"))
    mine = (data.modality.name, data.modality.preprocessing)
    if not isinstance(loaded, AUDIT_NETWORKS[name]) or (inherited["modality"], inherited["preprocessing"]) != mine:
        raise TrainingError(f"--init_from: {path} is for another kind of image. Name audit networks of {mine[0]}.")
    known = set(inherited["seen"]) & _digests((data, options.get("pairs")), ("val", "test"))
    if known:
        raise TrainingError(
            f"--init_from: {path} was trained on {len(known)} images that are val or test images here. Name networks "
            "that have not seen them, or use the split of their training."
        )
    return AuditTrainer(name, network=loaded, max_epochs=max_epochs, inherited=inherited, **options)


def _digests(sets: Iterable[ImageData | None], splits: Sequence[str]) -> set[str]:
    return {digest[:DIGEST] for data in sets if data is not None for digest in data.digests(splits)}
