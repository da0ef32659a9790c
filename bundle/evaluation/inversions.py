# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Judges inversions of real images by networks that neither the encoder nor the descent has used.

LPIPS and pixels are what the inversion minimises. Whether it shows the same patient and the same class is said by the
audit's embedding and by the gate's classifier, which look at the images alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bundle.data import ImageData
from bundle.data.records import SPLITS
from bundle.files import write_json
from bundle.latent.inverter import InversionError, InversionSettings, Inverter
from bundle.latent.prior import LatentPrior
from bundle.latent.real_latents import LATENTS, RealLatents, load_latents, spread_out
from bundle.latent.reconstruction import nearest_of_others, reconstruction_scores, synthesise
from bundle.markup import markdown_table, three_digits
from bundle.metrics.lpips import lpips_model
from bundle.metrics.recognition import predict
from bundle.networks.embeddings import ContrastiveEmbedding
from bundle.networks.encoder import Encoder
from bundle.networks.model_set import ModelSet
from bundle.networks.weights import WeightsError, load_weights

__all__ = ["JUDGES", "compare_starts", "judge_inversions", "load_embedding", "rank_one"]

#: Networks that a judgement loads together; the audit's embedding may have been trained at another resolution.
JUDGES = ("generator", "encoder", "gate_class")
# Images that are inverted again, to compare the encoder's start with the mean of W.
COMPARED = 8
TITLES = {
    "n": "images",
    "rank_one": "nearest to its own original among all, audit_embedding (share)",
    "rank_one_patient": "nearest to an original of its patient (share)",
    "rank_one_chance": "the same by chance (share)",
    "label_kept": "label kept, gate_class (share)",
    "label_of_originals": "label of the originals found, gate_class (share)",
    "lpips": "LPIPS to the inversion",
    "lpips_nearest": "LPIPS to the nearest image of another patient",
    "nearer": "nearer to the inversion than to that image (share)",
    "pixels": "root mean squared error of the pixels",
    "spread": "spread of the layers, in deviations of w",
    "prior": "distance from W (1: a typical sample)",
}


def load_embedding(models_dir: str | Path, models: ModelSet, device: str | torch.device = "cpu") -> nn.Module:
    """Loads the audit's embedding.

    Raises:
        WeightsError: it is missing, damaged, or for another kind of image than the generator.
    """
    path = Path(models_dir) / "audit_embedding.pt"
    network, info = load_weights(path, device, ("modality", "channels"))
    generator = models.infos["generator"]
    for key in ("modality", "channels", "preprocessing"):
        if info.get(key) != generator.get(key):
            raise WeightsError(
                f"{path} is for another {key} than the generator ({info.get(key)}, not {generator.get(key)}). Train it "
                f"with configs/train_audit.json."
            )
    if not isinstance(network, ContrastiveEmbedding):
        raise WeightsError(f"{path} holds a {info['network']}. Copy the audit's networks anew.")
    return network


def judge_inversions(
    models: ModelSet,
    embedding: nn.Module,
    data: ImageData,
    output_dir: str | Path,
    squeezenet_file: str | None = None,
) -> dict[str, Any]:
    """Judges the inversions that ``invert`` has written, prints the table and writes ``judgement.json``.

    Args:
        models: the networks `JUDGES`.
        embedding: the audit's embedding, see `load_embedding`.
        data: the images that were inverted.
        output_dir: output folder of the inversion.
        squeezenet_file: file of the SqueezeNet 1.1 weights; None for those of torchvision.

    Returns:
        Under ``sets``, the means of `TITLES` for the training images of the generator and for held-out ones (val and
        test), or for all where the splits are not the generator's; under ``costs``, see `compare_starts`.

    Raises:
        InversionError: the images were not inverted by this generator, or have changed since.
        TrunkUnavailable: the SqueezeNet weights are not available.
    """
    path = Path(output_dir) / "private" / LATENTS
    latents = load_latents(path, models.infos["generator"]["sha256"])
    if latents.digests != data.digests(SPLITS):
        raise InversionError(f"{path} holds latents of other images. Name the dataset_dir that was inverted.")
    known = latents.split_sha256 == models.split_sha256
    sets = {"train": latents.indices(("train", "extra")), "held_out": latents.indices(("val", "test"))}
    sets = {name: members for name, members in sets.items() if members} if known else {"all": [*range(len(latents.w))]}
    originals = torch.as_tensor(data.load(data.records(SPLITS), progress=True))
    found = _measure(models, embedding, latents, originals, sets, squeezenet_file)
    costs = compare_starts(models, latents, originals, next(reversed(sets.values())), squeezenet_file)
    result = {"sets": found, "costs": costs, "settings": latents.settings}
    write_json(Path(output_dir) / "judgement.json", result)
    print(_tables(found, costs))
    return result


def _measure(
    models: ModelSet,
    embedding: nn.Module,
    latents: RealLatents,
    originals: Tensor,
    sets: dict[str, list[int]],
    squeezenet_file: str | None,
) -> dict[str, dict[str, float]]:
    inverted = synthesise(models.generator, latents.w)
    labels = torch.tensor(latents.labels)
    own, patient = rank_one(embedding, inverted, originals, latents.digests, latents.patient_ids)
    right = {
        name: predict(models.networks["gate_class"], images).argmax(dim=1) == labels
        for name, images in (("label_kept", inverted), ("label_of_originals", originals))
    }
    encoder = models.networks["encoder"]
    assert isinstance(encoder, Encoder)
    model = lpips_model(squeezenet_file).to(encoder.mean.device)
    prior = LatentPrior(models.generator)
    gallery = next(iter(sets.values()))
    number = {patient: index for index, patient in enumerate(sorted(set(latents.patient_ids)))}
    owners = torch.tensor([number[patient] for patient in latents.patient_ids])
    result: dict[str, dict[str, float]] = {}
    for name, members in sets.items():
        nearest = nearest_of_others(originals[members], owners[members], originals[gallery], owners[gallery], model)
        scores = reconstruction_scores(
            models.generator,
            latents.w[members],
            originals[members],
            labels[members],
            nearest,
            encoder.deviation,
            prior,
            model,
        )
        shares = {"rank_one": own, "rank_one_patient": patient, **right}
        means = {key: float(values[members].double().mean()) for key, values in shares.items()}
        result[name] = {**scores, **means, "rank_one_chance": 1.0 / len(originals)}
    return result


def rank_one(
    embedding: nn.Module, inverted: Tensor, originals: Tensor, digests: Sequence[str], patients: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Says which inversions are nearer to their own original than to any other one.

    Args:
        embedding: the audit's embedding.
        inverted: inversions [N, C, H, W] in [-1, 1].
        originals: their originals [N, C, H, W] in [-1, 1], in the same order.
        digests: digest of each original; images of equal content count as one.
        patients: patient of each original.

    Returns:
        Whether the nearest original is the own one, [N], and whether it is of the same patient, [N].
    """
    assert isinstance(embedding, ContrastiveEmbedding)
    index = embedding.nearest(predict(embedding, inverted), predict(embedding, originals))[1].tolist()
    own = [digests[found] == digest for found, digest in zip(index, digests, strict=True)]
    same = [patients[found] == patient for found, patient in zip(index, patients, strict=True)]
    return torch.tensor(own), torch.tensor(same)


def compare_starts(
    models: ModelSet,
    latents: RealLatents,
    originals: Tensor,
    members: Sequence[int],
    squeezenet_file: str | None = None,
) -> dict[str, dict[str, float]]:
    """Inverts a few images again, from the encoder's prediction and from the mean of W, with equally many steps.

    Args:
        models: the networks `JUDGES`.
        latents: latents of the images, whose settings are used.
        originals: images [N, C, H, W] in [-1, 1].
        members: indices of the images to choose from.
        squeezenet_file: file of the SqueezeNet 1.1 weights; None for those of torchvision.

    Returns:
        For ``encoder`` (its prediction alone), ``encoder and steps`` and ``mean and steps``: mean ``lpips`` and
        ``pixels`` of the inversions, and ``cpu_seconds`` per image.
    """
    encoder = models.networks["encoder"]
    assert isinstance(encoder, Encoder)
    chosen = spread_out(members, COMPARED)
    images, labels = originals[chosen], torch.tensor(latents.labels)[chosen]
    settings = InversionSettings(**{key: latents.settings[key] for key in InversionSettings.__dataclass_fields__})
    inverter = Inverter(models.generator, encoder, settings, squeezenet_file)
    alone = Inverter(models.generator, encoder, replace(settings, steps=0), squeezenet_file)
    ways = {
        "encoder": lambda: alone(images, labels),
        "encoder and steps": lambda: inverter(images, labels),
        "mean and steps": lambda: inverter.descend(images, labels, inverter.mean_start(len(images))),
    }
    result = {}
    for name, way in ways.items():
        start = time.process_time()
        found = way()
        seconds = (time.process_time() - start) / len(images)
        errors = {key: float(found[key].mean()) for key in ("lpips", "pixels")}
        result[name] = {**errors, "cpu_seconds": seconds, "n": len(images)}
    return result


def _tables(found: dict[str, dict[str, float]], costs: dict[str, dict[str, float]]) -> str:
    rows = [["measure", *(name.replace("_", "-") for name in found)]]
    rows += [[title, *(three_digits(scores[key]) for scores in found.values())] for key, title in TITLES.items()]
    ways = [["a few images, by", "LPIPS", "pixels", "CPU seconds per image"]]
    ways += [
        [name, *(three_digits(values[key]) for key in ("lpips", "pixels", "cpu_seconds"))]
        for name, values in costs.items()
    ]
    return f"{markdown_table(rows)}\n\n{markdown_table(ways)}"
