# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from bundle.networks.latent_guides import LATENT_GUIDES
from bundle.networks.model_set import COMMON, GENERATION_NETWORKS, load_models, read_infos
from bundle.networks.stylegan2 import Generator
from bundle.networks.weights import WeightsError, load_weights, read_info, save_weights
from tests.conftest import edit_info


@pytest.fixture
def models_dir(toy_models: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(toy_models, tmp_path / "models"))


def test_whole_set_loads(toy_models: Path) -> None:
    models = load_models(toy_models)
    assert tuple(models.networks) == tuple(models.infos) == GENERATION_NETWORKS
    assert isinstance(models.generator, Generator)
    assert models.class_names == ("normal", "tuberculosis")
    assert models.split_sha256 == "0" * 64
    for network in models.networks.values():
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_jsons_alone_say_what_a_set_is(toy_models: Path, models_dir: Path) -> None:
    models, infos = load_models(toy_models), read_infos(toy_models)
    assert infos.infos == models.infos
    assert (infos.class_names, infos.split_sha256, infos.sha256()) == (
        models.class_names,
        models.split_sha256,
        models.sha256(),
    )
    (models_dir / "gate_class.pt").unlink()
    with pytest.raises(WeightsError, match=r"gate_class\.pt does not exist"):
        read_infos(models_dir)


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
    # Whose JSON says channels and classes only in words: what its arguments say as well is held against them before.
    edit_info(models_dir / "latent_identity.pt", **{key: other})
    with pytest.raises(WeightsError) as caught:
        load_models(models_dir, names=(*GENERATION_NETWORKS, "latent_identity"))
    message = str(caught.value)
    assert message.startswith(f"{models_dir}: latent_identity and generator do not belong together: {key} differs")
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
    path = models_dir / "latent_identity.pt"
    edit_info(path, training={**read_info(path)["training"], key: "0" * 64})
    with pytest.raises(WeightsError, match=f"latent_identity was not distilled from this {original}"):
        load_models(models_dir, names=names)


def test_hashes_of_a_set_cover_what_its_jsons_say(models_dir: Path) -> None:
    before = load_models(models_dir).sha256()
    assert tuple(before) == GENERATION_NETWORKS
    edit_info(models_dir / "gate_identity.pt", scores={"threshold": 0.5})
    after = load_models(models_dir).sha256()
    assert {name for name in before if before[name] != after[name]} == {"gate_identity"}


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("generator", "scores"),
        ("generator", "seed"),
        ("class_guide", "class_names"),
        ("class_guide", "modality"),
        ("latent_class", "training"),
        ("latent_identity", "cpu_seconds"),
    ],
)
def test_missing_entry_is_named(models_dir: Path, name: str, entry: str) -> None:
    edit_info(models_dir / f"{name}.pt", **{entry: None})
    with pytest.raises(WeightsError, match=rf"{name}\.json cannot be used: {entry}[a-z0-9_., ]* is missing"):
        load_models(models_dir, names=(*GENERATION_NETWORKS, *LATENT_GUIDES))


def test_gate_without_a_threshold_is_refused(models_dir: Path) -> None:
    for scores in ({}, {"threshold": None}):
        edit_info(models_dir / "gate_identity.pt", scores=scores)
        with pytest.raises(WeightsError, match=r"gate_identity\.json cannot be used: scores\.threshold is"):
            load_models(models_dir)


@pytest.mark.parametrize("threshold", [0, -0.1, 1.5, 10**400])
def test_threshold_is_a_probability(models_dir: Path, threshold: float) -> None:
    edit_info(models_dir / "gate_identity.pt", scores={"threshold": threshold})
    with pytest.raises(WeightsError, match=r"gate_identity\.pt cannot be the gate_identity: its threshold is"):
        load_models(models_dir)


@pytest.mark.parametrize(("gate", "guide"), [("gate_identity", "identity_guide"), ("gate_class", "class_guide")])
def test_a_guide_is_no_gate(models_dir: Path, gate: str, guide: str) -> None:
    for suffix in (".pt", ".json"):
        shutil.copyfile(models_dir / f"{guide}{suffix}", models_dir / f"{gate}{suffix}")
    if gate == "gate_identity":
        edit_info(models_dir / f"{gate}.pt", scores={"threshold": 0.5})
    with pytest.raises(WeightsError, match=f"{gate} and {guide} are the same network"):
        load_models(models_dir)


@pytest.mark.parametrize(
    ("name", "other", "words"),
    [
        ("generator", "class_guide", "it is a Guide"),
        ("gate_class", "generator", "it is a Generator"),
        ("class_guide", "latent_class", "it is a LatentGuide"),
        ("latent_class", "class_guide", "it is a Guide"),
        ("gate_class", "gate_identity", "it does not tell classes apart"),
        ("identity_guide", "class_guide", "it does not tell patients apart"),
    ],
)
def test_network_of_another_role_is_refused(models_dir: Path, name: str, other: str, words: str) -> None:
    network, info = load_weights(models_dir / f"{other}.pt")
    training = {"generator_sha256": "0" * 64, "teacher_sha256": "0" * 64}
    save_weights(network, models_dir / f"{name}.pt", {**info, "training": training})
    with pytest.raises(WeightsError, match=rf"{name}\.pt cannot be the {name}: {words}"):
        load_models(models_dir, names=(*GENERATION_NETWORKS, "latent_class"))
