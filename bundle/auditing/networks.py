# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Loads the networks of an audit, or trains and keeps them if there are none for the data set."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import monai.bundle
from monai.bundle import ConfigParser
from torch import nn

from bundle.auditing.images import LEAST_SIDE, Cohort
from bundle.data import DatasetDir, ImageData, Modality, open_dataset
from bundle.data.dataset import IDENTITY_SPLITS
from bundle.data.splits import splits_home
from bundle.files import content_digest, private_folder
from bundle.networks.weights import WeightsError, load_weights, read_info
from bundle.training.audit_networks import AUDIT_NETWORKS, DIGEST

__all__ = ["audit_networks", "default_audit_dir", "open_audit_data", "trained_networks"]

# Training options that the networks depend on, besides the images.
TRAINING_OPTIONS = ("resolution", "max_epochs", "batch_size", "learning_rate", "seed")


def default_audit_dir(cohort: Cohort, options: dict[str, Any]) -> str:
    """Returns a folder named after the cohort's content and the options, so that audits do not share a folder."""
    return f"output/audit-{content_digest([cohort.sha256, cohort.holds, cohort.not_judged, options], 10)}"


def open_audit_data(
    dataset_dir: DatasetDir,
    cohort: Cohort,
    models_dir: str,
    output_dir: str,
    modality: str | Modality,
    resolution: int,
    seed: int,
    layout: str | Mapping[str, Any] = "auto",
    patient_pattern: str | None = None,
    drop_duplicates: bool | None = None,
) -> ImageData:
    """Opens the real images at the resolution of the audit: that of the cohort, but at most ``resolution``.

    Args:
        dataset_dir: folder or folders of the real images: the training images of the generator and held-out images.
        cohort: synthetic images; real images are downscaled to their size, because these are not upscaled.
        models_dir: folder of the networks; the split file of their training is searched for next to it.
        output_dir: output folder of the audit.
        modality: preset of the modality, or its name.
        resolution: largest side, in pixels.
        seed: seed of the splits, if there is no split file.
        layout: layout of dataset_dir, see `bundle.data.open_dataset`.
        patient_pattern: see `bundle.data.open_dataset`.
        drop_duplicates: see `bundle.data.open_dataset`.

    Raises:
        DataError: the images cannot be used.
    """
    side = max(LEAST_SIDE, min(resolution, cohort.side))
    home = splits_home(models_dir, output_dir)
    return open_dataset(dataset_dir, home, modality, side, seed, layout, patient_pattern, drop_duplicates)


def audit_networks(
    data: ImageData,
    dataset_dir: DatasetDir,
    models_dir: str,
    bundle_root: str,
    output_dir: str,
    layout: str | Mapping[str, Any] = "auto",
    device: str = "cpu",
) -> tuple[dict[str, nn.Module], dict[str, dict[str, Any]]]:
    """Loads the audit's networks for a data set, or trains them.

    The networks in ``models_dir`` are used if they were trained on all training images and on no validation or test
    image; images are identified by content. Otherwise networks are trained with configs/train_audit.json and kept in
    ``output/audit_networks`` of the bundle, in a folder named after a hash of the images and the training options.

    Args:
        data: real images.
        dataset_dir: folder or folders of the real images.
        models_dir: folder that may contain ``audit_embedding`` and ``audit_verifier``.
        bundle_root: folder of the bundle.
        output_dir: output folder of the audit.
        layout: layout of dataset_dir.
        device: device of the networks.

    Returns:
        The networks, and the contents of their JSON files, both by name.

    Raises:
        WeightsError: the folder named after the hash contains networks that do not match the images.
    """
    misfit = _misfit(Path(models_dir), data)
    if misfit is None:
        return _load(Path(models_dir), device)
    why = f"{models_dir} holds no networks to audit this data set with ({misfit})."
    return trained_networks(None, data, dataset_dir, models_dir, bundle_root, output_dir, layout, device, why)


def trained_networks(
    seed: int | None,
    data: ImageData,
    dataset_dir: DatasetDir,
    models_dir: str,
    bundle_root: str,
    output_dir: str,
    layout: str | Mapping[str, Any] = "auto",
    device: str = "cpu",
    why: str = "Networks of another training are needed.",
) -> tuple[dict[str, nn.Module], dict[str, dict[str, Any]]]:
    """Trains networks for a data set, or loads those that were trained before with the same images and options.

    Args:
        seed: seed of the training; None for that in configs/train_audit.json.
        data: see `audit_networks`, as for the other arguments.
        dataset_dir: folder or folders of the real images.
        models_dir: folder of the generator; beside it, the split file of its training.
        bundle_root: folder of the bundle.
        output_dir: output folder of the audit.
        layout: layout of dataset_dir.
        device: device of the networks.
        why: reason for the training, printed before it.

    Raises:
        WeightsError: the folder named after the hash contains networks that do not match the images.
    """
    config = Path(bundle_root) / "configs" / "train_audit.json"
    options = ConfigParser.load_config_file(config)
    if seed is not None:
        options["seed"] = seed
    trained_on = [data.content_sha256(IDENTITY_SPLITS), data.split_sha256]
    digest = content_digest([trained_on, {name: options[name] for name in TRAINING_OPTIONS}])
    home = Path(bundle_root) / "output" / "audit_networks" / digest
    if _misfit(home / "models", data) is not None:
        print(f"{why} Training them now, once; they are kept in {home}.")
        source = splits_home(models_dir, output_dir) / "private" / "splits.json"
        if source.exists() and not (home / "private" / "splits.json").exists():
            private_folder(home / "private")
            shutil.copyfile(source, home / "private" / "splits.json")
        monai.bundle.run(
            config_file=str(config),
            bundle_root=bundle_root,
            dataset_dir=dataset_dir,
            layout=layout,
            modality=data.modality,
            device=device,
            seed=options["seed"],
            output_dir=str(home),
        )
    misfit = _misfit(home / "models", data)
    if misfit is not None:
        raise WeightsError(f"{home} does not hold what its name says ({misfit}). Remove that folder and run again.")
    return _load(home / "models", device)


def _misfit(folder: Path, data: ImageData) -> str | None:
    """Returns the reason why the networks of a folder cannot be used for a data set; None if they can."""
    for name in AUDIT_NETWORKS:
        path = folder / f"{name}.pt"
        if not path.exists() and not path.with_suffix(".json").exists():
            return f"there is no {name}"
        try:
            info = read_info(path, ("modality", "preprocessing", "seen"))
        except WeightsError as error:
            return str(error).removesuffix(".")
        for key, mine in {"modality": data.modality.name, "preprocessing": data.modality.preprocessing}.items():
            if info[key] != mine:
                return f"{name} is for another {key}"
        seen = set(info["seen"])
        missing = sum(digest[:DIGEST] not in seen for digest in data.digests(IDENTITY_SPLITS))
        known = sum(digest[:DIGEST] in seen for digest in data.digests(("val", "test")))
        if known:
            return f"{name} was trained on {known} of the val and test images"
        if missing:
            return f"{name} has not seen {missing} of the training images"
    return None


def _load(folder: Path, device: str) -> tuple[dict[str, nn.Module], dict[str, dict[str, Any]]]:
    pairs = {name: load_weights(folder / f"{name}.pt", device, ("seen",)) for name in AUDIT_NETWORKS}
    for name, (network, info) in pairs.items():
        if not isinstance(network, AUDIT_NETWORKS[name]):
            raise WeightsError(f"{folder / name}.pt holds a {info['network']}. Copy the audit's networks anew.")
    return {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()}
