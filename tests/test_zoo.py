# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The checks that MONAI's model zoo makes before it takes a bundle, and MONAI's own of its workflows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, run, verify_metadata, verify_net_in_out
from PIL import Image

from bundle.data import get_modality
from bundle.files import sha256_file
from bundle.networks.stylegan2 import Generator
from bundle.networks.weights import WeightsError, read_info, save_weights
from bundle.tracking import tracking_uri
from tests.conftest import ROOT, cause

METADATA = ROOT / "configs" / "metadata.json"
INFERENCE = ROOT / "configs" / "inference.json"
MODEL = ROOT / "models" / "model.pt"
#: Files of metadata and of the configuration of inference, by modality.
MODALITIES = {
    "xray": ([str(METADATA)], [str(INFERENCE)]),
    "fundus": (
        [str(METADATA), str(ROOT / "configs" / "metadata_fundus.json")],
        [str(INFERENCE), str(ROOT / "configs" / "fundus.json")],
    ),
}
LARGEST_FILE = 25 * 2**20


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(METADATA.read_text())
    return content


@pytest.fixture(scope="module")
def lock() -> dict[str, str]:
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^ ;\n]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))


@pytest.fixture(scope="module")
def shipped() -> Path:
    if not MODEL.is_file():
        pytest.skip("models/model.pt is not there: no weights have been trained and added yet")
    return MODEL


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Weights of the network that configs/inference.json defines, untrained."""
    parser = ConfigParser()
    parser.read_config(INFERENCE)
    network = parser.get_parsed_content("network_def")
    assert isinstance(network, Generator)
    save_weights(network, tmp_path / "model.pt", {})
    return tmp_path / "model.pt"


def tracked_files() -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files belong to the bundle cannot be told")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("name", ["LICENSE", "configs/metadata.json", "configs/inference.json", "docs/README.md"])
def test_the_zoos_files_are_there(name: str) -> None:
    assert (ROOT / name).stat().st_size > 0


def test_weights_and_the_licence_of_their_data_are_there(shipped: Path) -> None:
    assert (ROOT / "docs" / "data_license.txt").stat().st_size > 0
    assert (ROOT / "models" / "LICENSE").stat().st_size > 0
    assert sha256_file(shipped) == sha256_file(ROOT / "models" / "xray" / "generator.pt")
    assert read_info(shipped) == read_info(ROOT / "models" / "xray" / "generator.pt")
    for path in sorted(ROOT.glob("models/*/*.pt")):
        assert read_info(path)["json_sha256"]


def test_no_file_is_larger_than_the_zoo_takes() -> None:
    assert {path.name: path.stat().st_size for path in tracked_files() if path.stat().st_size > LARGEST_FILE} == {}


def test_both_metadata_files_are_the_same_bytes() -> None:
    assert (ROOT / "metadata.json").read_bytes() == METADATA.read_bytes()


def test_the_version_is_in_the_changelog_and_in_the_project_file(metadata: dict[str, Any]) -> None:
    assert metadata["version"] in metadata["changelog"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata["version"] == project["version"]


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_metadata_follow_the_schema(modality: str, shared_data: Path) -> None:
    schema = shared_data / "schema" / "meta_schema_20240725.json"
    verify_metadata(meta_file=MODALITIES[modality][0], filepath=str(schema))
    assert json.loads(METADATA.read_text())["schema"].endswith(schema.name)


def test_the_metadata_name_the_locked_versions(metadata: dict[str, Any], lock: dict[str, str]) -> None:
    named = {
        "monai": metadata["monai_version"],
        "torch": metadata["pytorch_version"],
        "numpy": metadata["numpy_version"],
    }
    named |= metadata["required_packages_version"]
    assert named == {name: lock[name] for name in named}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(named) == {requirement.split("==")[0] for requirement in project["dependencies"]}


def test_every_requirement_is_pinned_and_from_no_named_host() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    requirements = [line for line in lines if line.strip() and not line.strip().startswith("#")]
    assert len(requirements) > 50
    assert [line for line in requirements if not re.match(r"^[A-Za-z0-9_.\[\]-]+==[^ ]+( ; .+)?$", line)] == []
    assert not any("://" in line for line in lines)


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_network_takes_and_gives_what_the_metadata_say(modality: str) -> None:
    meta_files, config_files = MODALITIES[modality]
    verify_net_in_out("network_def", meta_file=meta_files, config_file=config_files, device="cpu")
    parser = ConfigParser()
    parser.read_config(config_files)
    parser.read_meta(meta_files)
    network = parser.get_parsed_content("network_def").eval()
    formats = parser["_meta_"]["network_data_format"]
    taken, expected = formats["inputs"]["image"], formats["outputs"]["pred"]
    with torch.no_grad():
        image = network(torch.randn(2, taken["num_channels"]) * 3)
    assert list(image.shape) == [2, expected["num_channels"], *expected["spatial_shape"]]
    assert expected["value_range"][0] <= float(image.min()) < float(image.max()) <= expected["value_range"][1]
    assert len(expected["channel_def"]) == expected["num_channels"]
    class_names = get_modality(modality).class_names
    said = [f"1 for {name}, else 0" for name in class_names]
    assert [taken["channel_def"][str(network.z_dim + index)] for index in range(len(class_names))] == said
    assert parser["_meta_"]["label_classes"] == ", ".join(f"{index}: {name}" for index, name in enumerate(class_names))


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_network_of_the_configuration_is_that_of_the_weights(modality: str, shipped: Path) -> None:
    parser = ConfigParser()
    parser.read_config(MODALITIES[modality][1])
    info = json.loads((shipped.parent / modality / "generator.json").read_text())
    assert parser.get_parsed_content("network_def").arguments == info["arguments"]


@pytest.mark.parametrize("weights", ["untrained", "shipped"])
def test_exports_to_torchscript(weights: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    checkpoint = request.getfixturevalue("model" if weights == "untrained" else "shipped")
    exported = tmp_path / "model.ts"
    ckpt_export(
        "network_def",
        filepath=str(exported),
        ckpt_file=str(checkpoint),
        meta_file=str(METADATA),
        config_file=str(INFERENCE),
    )
    parser = ConfigParser()
    parser.read_config(INFERENCE)
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(checkpoint, weights_only=True), strict=True)
    vector = torch.randn(3, 130)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(exported)(vector), network(vector), atol=1e-5, rtol=1e-4)


def test_inference_has_the_properties_of_an_inference_workflow(model: Path, tmp_path: Path) -> None:
    workflow = ConfigWorkflow(
        config_file=str(INFERENCE),
        meta_file=str(METADATA),
        workflow_type="inference",
        checkpoint=str(model),
        output_dir=str(tmp_path / "output"),
        n_images=3,
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    assert len(workflow.dataset_data) == 3


@pytest.mark.parametrize("name", ["train_gan", "train_guides"])
def test_training_has_the_properties_of_a_training_workflow(name: str, tiny_dataset: Path, tmp_path: Path) -> None:
    workflow = ConfigWorkflow(
        config_file=str(ROOT / "configs" / f"{name}.json"),
        meta_file=str(METADATA),
        workflow_type="training",
        dataset_dir=str(tiny_dataset),
        output_dir=str(tmp_path / "output"),
        resolution=32,
        device="cpu",
    )
    workflow.initialize()
    assert workflow.check_properties() == []


@pytest.mark.parametrize("damage", ["edited", "other weights", "no json", "other network"])
def test_inference_refuses_weights_that_are_not_as_they_were_written(
    damage: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    json_path = model.with_suffix(".json")
    if damage == "edited":
        json_path.write_text(json_path.read_text().replace('"format": 1', '"format": 1, "licence": "free"'))
    elif damage == "other weights":
        state = torch.load(model, weights_only=True)
        torch.save({key: value + 1 for key, value in state.items()}, model)
    elif damage == "no json":
        json_path.unlink()
    else:
        save_weights(Generator(32, z_dim=4, w_dim=4, channel_base=128, channel_max=4), model, {})
    options: dict[str, Any] = {"checkpoint": str(model), "output_dir": str(tmp_path / "output"), "device": "cpu"}
    with pytest.raises(RuntimeError) as caught:
        run(config_file=str(INFERENCE), bundle_root=str(ROOT), n_images=1, **options)
    error = cause(caught.value)
    words = {
        "edited": r"model\.json was changed after it was written",
        "other weights": r"model\.pt is not the file that its JSON describes",
        "no json": r"model\.json does not exist",
        "other network": r"model\.pt holds Generator\(.*\), not Generator\(",
    }
    assert isinstance(error, WeightsError)
    assert re.search(words[damage], str(error))
    assert not (tmp_path / "output" / "samples").exists()


def test_inference_writes_images_and_an_mlflow_run(
    model: Path, metadata: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    side = tuple(metadata["network_data_format"]["outputs"]["pred"]["spatial_shape"])
    output = tmp_path / "output"
    options: dict[str, Any] = {"checkpoint": str(model), "output_dir": str(output), "device": "cpu", "seed": 3}
    run(config_file=str(INFERENCE), bundle_root=str(ROOT), n_images=3, batch_size=2, tracking="mlflow", **options)
    images = {path.name: np.asarray(Image.open(path)) for path in sorted((output / "samples").iterdir())}
    assert list(images) == ["000000.png", "000001.png", "000002.png"]
    assert all(image.shape == side and image.std() > 0 for image in images.values())
    client = mlflow.MlflowClient(tracking_uri(output))
    experiment = client.get_experiment_by_name("inference")
    assert experiment is not None
    [record] = client.search_runs([experiment.experiment_id])
    assert record.info.status == "FINISHED"

    run(
        config_file=str(INFERENCE),
        bundle_root=str(ROOT),
        n_images=1,
        **{**options, "output_dir": str(tmp_path / "one")},
    )
    alone = np.asarray(Image.open(tmp_path / "one" / "samples" / "000000.png"))
    # Another batch size may take other kernels, whose last bits can tip a pixel's rounding.
    assert np.abs(alone.astype(int) - images["000000.png"].astype(int)).max() <= 1
