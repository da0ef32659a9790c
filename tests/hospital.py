# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""A hospital of soft blobs, and networks that learned to tell its patients apart in seconds."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from bundle.auditing import reference
from bundle.auditing.images import RealImages
from bundle.auditing.reference import Reference
from bundle.data import ImageData, open_dataset
from bundle.networks.embeddings import ContrastiveEmbedding, SiameseVerifier
from bundle.networks.weights import load_weights
from bundle.training.audit_networks import AuditTrainer
from bundle.training.network_trainer import role_seed

SPLITS = ["train"] * 60 + ["val"] * 60 + ["test"] * 60
# As in a hospital's files: nothing of these may be read in a report.
EPOCHS = {"audit_embedding": 1200, "audit_verifier": 300}
SURNAME = "Zwingenberger"

Networks = tuple[dict[str, torch.nn.Module], dict[str, dict[str, Any]]]
CohortMaker = Callable[[str, list[np.ndarray]], Path]


def blobs(number: int) -> np.ndarray:
    """Blobs at places that differ from number to number: a patient, or nobody."""
    coarse = np.random.default_rng(number).integers(0, 256, (5, 5), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((40, 40), Image.Resampling.BICUBIC))


def owner(number: int) -> int:
    """Whose image it is: in every split, some patients have two images that differ a little."""
    return number - 1 if number % 60 in (*range(1, 12, 2), *range(31, 40, 2), *range(51, 60, 2)) else number


def real_image(number: int) -> np.ndarray:
    """An image of the hospital."""
    return np.minimum(blobs(owner(number)), 250 - 10 * (number - owner(number)))


@pytest.fixture(scope="session")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospital")
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["image", "label", "patient_id", "split"])
        for number, split in enumerate(SPLITS):
            name = f"{SURNAME}_{number:03d}.png"
            Image.fromarray(real_image(number)).save(folder / name)
            rows.writerow([name, owner(number) % 4 // 2, f"MRN-{7000 + owner(number)}", split])
    return folder


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of another hospital, twelve of each class."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for number in range(24):
        place = folder / ("normal", "tuberculosis")[number % 2]
        place.mkdir(exist_ok=True)
        Image.fromarray(real_image(5000 + number)).save(place / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def hospital_data(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return open_dataset(hospital, tmp_path_factory.mktemp("opened"), resolution=32)


@pytest.fixture(scope="session")
def common_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this test run share; what is written there is written under a lock or renamed."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "common"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def networks(hospital_data: ImageData, common_folder: Path) -> Networks:
    folder = common_folder / "audit_networks"
    kinds: dict[str, type[ContrastiveEmbedding] | type[SiameseVerifier]] = {
        "audit_embedding": ContrastiveEmbedding,
        "audit_verifier": SiameseVerifier,
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same networks on machines of any number of cores
    try:
        for name, kind in kinds.items():
            with FileLock(common_folder / f"{name}.lock"):
                if (folder / "models" / f"{name}.pt").exists():
                    continue
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(role_seed(name, 0))
                    network = kind(1, side=32, widths=(16, 32, 48), dimension=32)
                dataset = hospital_data.dataset("train")
                AuditTrainer(name, hospital_data, dataset, network, folder, "cpu", 30, max_epochs=EPOCHS[name]).run()
    finally:
        torch.set_num_threads(threads)
    pairs = {name: load_weights(folder / "models" / f"{name}.pt") for name in kinds}
    return {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()}


def keep_reference(monkeypatch: pytest.MonkeyPatch, common_folder: Path) -> None:
    """Lets audits and evaluations compute once in a test run what concerns the same real images and networks alone."""

    def build(real: dict[str, RealImages], networks: dict[str, torch.nn.Module], folder: Path, *rest: Any) -> Reference:
        tensors = [tensor for side in real.values() for tensor in (side.pixels, side.patients)]
        tensors += [tensor for network in networks.values() for tensor in network.state_dict().values()]
        contents = b"".join(tensor.numpy().tobytes() for tensor in tensors)
        digest = sha256(contents + repr([reference.FAR, rest]).encode()).hexdigest()
        return Reference(real, networks, common_folder / f"reference_{digest[:16]}", *rest)

    for module in ("auditing.engine", "evaluation.setting"):
        monkeypatch.setattr(f"bundle.{module}.Reference", build)


@pytest.fixture
def kept_reference(common_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_reference(monkeypatch, common_folder)


@pytest.fixture
def new_cohort(tmp_path: Path) -> CohortMaker:
    """Writes images into a folder."""

    def build(name: str, images: list[np.ndarray]) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{number:04d}.png")
        return folder

    return build


def write_tiny_recipe(path: Path) -> None:
    """Writes a configuration train_gan.json whose networks are tiny and hardly measured."""
    config = json.loads((Path(__file__).resolve().parents[1] / "configs" / "train_gan.json").read_text("utf-8"))
    config |= {"calibrate": False, "amp": False}
    size = {"channel_base": 256, "channel_max": 32}
    config["network_def"] |= {**size, "z_dim": 16, "w_dim": 16}
    config["discriminator_def"] = {
        "_target_": "bundle.networks.stylegan2.Discriminator",
        **{name: config["network_def"][name] for name in ("resolution", "image_channels", "num_classes")},
        **size,
    }
    (best,) = (handler for handler in config["train"]["handlers"] if handler["_target_"].endswith("BestGenerator"))
    best["n_samples"] = 8
    path.write_text(json.dumps(config), encoding="utf-8")
