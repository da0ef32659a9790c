# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""What tests of every stage share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from torchvision.models import resnet18, squeezenet1_1

from bundle.data import get_modality, open_dataset
from bundle.files import sha256_file
from bundle.latent.real_latents import RealLatents, save_latents
from bundle.latent.reconstruction import mapped_samples
from bundle.networks.classifiers import GateClassifier, Guide
from bundle.networks.encoder import new_encoder
from bundle.networks.latent_guides import LATENT_GUIDES, LatentGuide, LatentRealism
from bundle.networks.realism import RealismJudge
from bundle.networks.stylegan2 import Generator
from bundle.networks.weights import load_weights, save_weights, write_info
from tests.hospital import common_folder as common_folder
from tests.hospital import elsewhere as elsewhere
from tests.hospital import hospital as hospital
from tests.hospital import hospital_data as hospital_data
from tests.hospital import kept_reference as kept_reference
from tests.hospital import networks as networks
from tests.hospital import new_cohort as new_cohort

ROOT = Path(__file__).resolve().parents[1]


def cause(error: BaseException) -> BaseException:
    """The error under those that MONAI wraps it in."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def train_on_models(config: str, models_dir: Path, output_dir: Path, **options: Any) -> None:
    """Runs a training that needs the networks of a folder, as the command line does."""
    monai.bundle.run(
        config_file=str(ROOT / "configs" / f"{config}.json"),
        bundle_root=str(ROOT),
        models_dir=str(models_dir),
        output_dir=str(output_dir),
        device="cpu",
        **options,
    )


def edit_info(path: Path, **changes: Any) -> None:
    """Changes entries of the JSON beside weights as somebody does who computes its hash anew; None removes one."""
    info = {**json.loads(path.with_suffix(".json").read_text(encoding="utf-8")), **changes}
    write_info(path, {key: value for key, value in info.items() if value is not None})


@pytest.fixture(autouse=True)
def few_planted_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Audits seek a fifth of the copies of each kind, which is most of their work on small data sets."""
    monkeypatch.setattr("bundle.auditing.reference.FAR", 20)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images and reference weights beside the checkout."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the real images and reference weights of {folder}, which are not part of the bundle")
    return folder


@pytest.fixture(scope="session")
def squeezenet_file(common_folder: Path) -> Path:
    """SqueezeNet 1.1 weights as torchvision publishes them, but random: LPIPS and KID without a download."""
    path = common_folder / "squeezenet1_1.pth"
    with FileLock(path.with_suffix(".lock")), torch.random.fork_rng(devices=[]):
        if not path.exists():
            torch.manual_seed(0)
            torch.save(squeezenet1_1(weights=None).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def resnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet-18 weights as torchvision publishes them, but random: a projected discriminator without a download."""
    path = tmp_path_factory.mktemp("trunk") / "resnet18.pth"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = resnet18(weights=None)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # batch norms as training leaves them, none the identity
                for name, value in module.state_dict().items():
                    if name in ("weight", "running_var"):
                        torch.nn.init.uniform_(value, 0.5, 1.5)
                    elif name in ("bias", "running_mean"):
                        torch.nn.init.normal_(value, std=0.1)
        torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two classes, 20 images of 40 x 40 pixels each: noise on a light disc, left or right."""
    folder = tmp_path_factory.mktemp("tiny")
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:40, :40]
    for label, name in enumerate(("normal", "tuberculosis")):
        (folder / name).mkdir()
        disc = (rows - 20) ** 2 + (columns - 13 - 14 * label) ** 2 < 100
        for index in range(20):
            pixels = generator.integers(0, 100, (40, 40)) + 120 * disc
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index:03d}.png")
    return folder


@pytest.fixture(scope="session")
def toy_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder for 32 pixels and two classes: an untrained generator, class networks that tell its classes
    apart, untrained identity networks, a gate that recognises hardly anybody, and students of the guides."""
    folder = tmp_path_factory.mktemp("toy") / "models"
    info = {
        "modality": "xray",
        "resolution": 32,
        "channels": 1,
        "class_names": ["normal", "tuberculosis"],
        "split_sha256": "0" * 64,
        "seed": 0,
        "scores": {},
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks: dict[str, torch.nn.Module] = {
            "generator": Generator(32, channel_base=256, channel_max=16, z_dim=8, w_dim=8),
            "identity_guide": Guide(1, 12, identity=True, width=0.125),
            "class_guide": Guide(1, 2, width=0.125),
            "gate_identity": GateClassifier(1, 12, identity=True, growth=4, layers=(1, 1)),
            "gate_class": GateClassifier(1, 2, growth=4, layers=(1, 1)),
            "realism_guide": RealismJudge(2, components=2, side=32, trunk="resnet18"),
            "gate_realism": RealismJudge(2, components=2, side=32),
        }
        generator = networks["generator"]
        assert isinstance(generator, Generator)
        label = torch.arange(64) % 2
        for name in ("realism_guide", "gate_realism"):
            judge = networks[name]
            assert isinstance(judge, RealismJudge)
            with torch.no_grad():
                judge.fit(judge.features(generator.synthesis(generator.mapping(torch.randn(64, 8), label))), label)
        for name in ("class_guide", "gate_class"):
            optimizer = torch.optim.Adam(networks[name].parameters(), lr=0.01)
            for _ in range(30):
                with torch.no_grad():
                    images = generator.synthesis(generator.mapping(torch.randn(64, 8), label))
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(networks[name](images), label).backward()
                optimizer.step()
        students = {
            name: toy_student(name, generator, networks[teacher]) for name, (teacher, _) in LATENT_GUIDES.items()
        }
    scores: dict[str, Any] = {
        "identity_guide": {"stranger_divergence": 0.0},
        "gate_identity": {"threshold": 0.999},
        "gate_realism": {"threshold": 100.0, "apart": [0.0, 0.0]},
    }
    for name, network in networks.items():
        save_weights(network, folder / f"{name}.pt", {**info, "scores": scores.get(name, {})})
    for name, student in students.items():
        origin = {
            "generator_sha256": folder / "generator.pt",
            "teacher_sha256": folder / f"{LATENT_GUIDES[name][0]}.pt",
        }
        own = {
            "training": {key: sha256_file(path) for key, path in origin.items()},
            "scores": {"walks": {"rank_correlation": 0.5}},
            "cpu_seconds": 9,
        }
        save_weights(student, folder / f"{name}.pt", {**info, **own})
    return folder


@pytest.fixture
def tiny_models(toy_models: Path, tiny_dataset: Path, tmp_path: Path) -> Path:
    """A copy of the toy networks, as if they had been trained on the images of tiny_dataset."""
    data = open_dataset(tiny_dataset, tmp_path, resolution=32)
    folder = Path(shutil.copytree(toy_models, tmp_path / "models"))
    for path in folder.glob("*.pt"):
        edit_info(path, split_sha256=data.split_sha256)
    return folder


@pytest.fixture
def encoder_models(tiny_models: Path) -> Path:
    """The toy networks, with the preprocessing of the images, and an encoder that predicts the mean of W."""
    for path in tiny_models.glob("*.pt"):
        edit_info(path, preprocessing=get_modality("xray").preprocessing)
    generator, info = load_weights(tiny_models / "generator.pt")
    assert isinstance(generator, Generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = new_encoder(generator, mapped_samples(generator, 0, 500), width=8)
    described = {**info, "training": {"generator_sha256": info["sha256"]}}
    save_weights(encoder, tiny_models / "encoder.pt", described)
    return tiny_models


def toy_latents(
    models_dir: Path, path: Path, patients: Sequence[str], labels: Sequence[int], **changes: Any
) -> RealLatents:
    """Writes latents of images that a generator could have been trained on: samples of W that vary over the layers."""
    generator, info = load_weights(models_dir / "generator.pt")
    assert isinstance(generator, Generator)
    random = torch.Generator().manual_seed(0)
    label = torch.tensor(labels)
    with torch.no_grad():
        w = generator.mapping(torch.randn(len(labels), generator.z_dim, generator=random), label)
    layers = generator.synthesis.num_ws
    spread = 0.1 * torch.randn(len(labels), layers, generator.w_dim, generator=random)
    made: dict[str, Any] = {
        "w": w.unsqueeze(1) + spread,
        "lpips": torch.zeros(len(labels)),
        "pixels": torch.zeros(len(labels)),
        "labels": list(labels),
        "patient_ids": list(patients),
        "digests": [f"{number:064x}" for number in range(len(labels))],
        "splits": ["train"] * len(labels),
        "split_sha256": info["split_sha256"],
        "generator_sha256": info["sha256"],
        "class_names": info["class_names"],
        "settings": {},
    }
    latents = RealLatents(**made | changes)
    save_latents(path, latents)
    return latents


def toy_student(name: str, generator: Generator, teacher: torch.nn.Module) -> LatentGuide:
    """A small student of a toy guide, trained for a moment."""
    teacher.eval()
    ask: Callable[[torch.Tensor], torch.Tensor] = teacher
    if isinstance(teacher, RealismJudge):
        student: LatentGuide = LatentRealism(generator.w_dim, teacher.num_classes, width=32, depth=2)
    else:
        assert isinstance(teacher, Guide)
        features, ask = teacher.head.weight.shape[1], teacher.features
        identity = name == "latent_identity"
        student = LatentGuide(generator.w_dim, features, teacher.num_classes, identity, width=32, depth=2)
        student.head.load_state_dict(teacher.head.state_dict())
    with torch.no_grad():
        w = generator.mapping(torch.randn(512, generator.z_dim), torch.arange(512) % 2)
        student.standardise(w)
        wanted = ask(generator.synthesis(w))
    optimizer = torch.optim.Adam(student.trunk.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(student.features(w), wanted).backward()
        optimizer.step()
    return student
