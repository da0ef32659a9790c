# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bundle.networks.model_set import COMMON, GENERATION_NETWORKS, load_models
from bundle.networks.stylegan2 import Generator
from bundle.networks.weights import WeightsError


@pytest.fixture
def models_dir(toy_models: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(toy_models, tmp_path / "models"))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_whole_set_loads(toy_models: Path) -> None:
    models = load_models(toy_models)
    assert tuple(models.networks) == tuple(models.infos) == GENERATION_NETWORKS
    assert isinstance(models.generator, Generator)
    assert models.class_names == ("normal", "tuberculosis")
    assert models.split_sha256 == "0" * 64
    for network in models.networks.values():
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_part_of_a_set(toy_models: Path) -> None:
    assert tuple(load_models(toy_models, names=("generator",)).networks) == ("generator",)


@pytest.mark.parametrize("name", GENERATION_NETWORKS)
def test_missing_network_is_named(models_dir: Path, name: str) -> None:
    (models_dir / f"{name}.pt").unlink()
    with pytest.raises(WeightsError, match=rf"{name}\.pt does not exist"):
        load_models(models_dir)


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("modality", "fundus"),
        ("resolution", 64),
        ("channels", 3),
        ("class_names", ["a", "b"]),
        ("split_sha256", "1" * 64),
        ("preprocessing", "another"),
    ],
)
def test_networks_that_do_not_belong_together_are_refused(models_dir: Path, key: str, other: Any) -> None:
    edit_json(models_dir / "gate_class.json", **{key: other})
    with pytest.raises(WeightsError) as caught:
        load_models(models_dir)
    message = str(caught.value)
    assert message.startswith(f"{models_dir}: gate_class and generator do not belong together: {key} differs")
    assert COMMON[key] in message
    assert "Train all networks on one dataset_dir" in message


def test_damaged_network_is_named(models_dir: Path) -> None:
    path = models_dir / "identity_guide.pt"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"identity_guide\.pt is not the file that its JSON describes"):
        load_models(models_dir)


@pytest.mark.parametrize(("key", "original"), [("generator_sha256", "generator"), ("teacher_sha256", "identity_guide")])
def test_students_of_other_networks_are_refused(models_dir: Path, key: str, original: str) -> None:
    names = (*GENERATION_NETWORKS, "latent_identity", "latent_class")
    assert tuple(load_models(models_dir, names=names).networks) == names
    path = models_dir / "latent_identity.json"
    edit_json(path, training={**json.loads(path.read_text())["training"], key: "0" * 64})
    with pytest.raises(WeightsError, match=f"latent_identity was not distilled from this {original}"):
        load_models(models_dir, names=names)
