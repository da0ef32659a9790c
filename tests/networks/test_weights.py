# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from torch import nn

from bundle.files import sha256_file
from bundle.networks.stylegan2 import Discriminator, Generator
from bundle.networks.weights import NETWORKS, WeightsError, load_weights, read_info, save_weights
from tests.conftest import ROOT

INFO = {"modality": "xray", "resolution": 32, "class_names": ["normal", "tuberculosis"]}


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(32, z_dim=4, w_dim=4, channel_base=128, channel_max=4, noise=True)


@pytest.fixture
def path(generator: Generator, tmp_path: Path) -> Path:
    file = tmp_path / "models" / "generator.pt"
    save_weights(generator, file, INFO)
    return file


def edit_json(path: Path, **changes: Any) -> None:
    file = path.with_suffix(".json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def replace_state(path: Path, state: Any) -> None:
    """Other content under a JSON that vouches for it."""
    torch.save(state, path)
    edit_json(path, sha256=sha256_file(path))


def test_weights_come_back_as_they_were_in_half_precision(generator: Generator, path: Path) -> None:
    network, info = load_weights(path)
    assert isinstance(network, Generator)
    assert network.arguments == generator.arguments
    assert {key: info[key] for key in INFO} == INFO
    for key, value in generator.state_dict().items():
        assert torch.equal(network.state_dict()[key], value.half().float())


def test_loaded_network_is_frozen_in_evaluation_mode_and_fp32(path: Path) -> None:
    network, _ = load_weights(path)
    assert not network.training
    assert all(not parameter.requires_grad and parameter.dtype == torch.float32 for parameter in network.parameters())


def test_files_are_a_flat_dict_of_tensors_and_a_json(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    assert isinstance(state, dict)
    assert all(isinstance(value, torch.Tensor) and value.dtype == torch.float16 for value in state.values())
    info = json.loads(path.with_suffix(".json").read_text())
    assert info["sha256"] == sha256_file(path)
    assert sorted(file.name for file in path.parent.iterdir()) == ["generator.json", "generator.pt"]


def test_saving_again_gives_the_same_bytes(generator: Generator, path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "generator.pt"
    save_weights(generator, other, INFO)
    assert other.read_bytes() == path.read_bytes()
    assert other.with_suffix(".json").read_bytes() == path.with_suffix(".json").read_bytes()


def test_integer_buffers_keep_their_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.arguments: dict[str, Any] = {}
            self.norm = nn.BatchNorm2d(2)

    monkeypatch.setitem(NETWORKS, "Counting", Counting)
    save_weights(Counting(), tmp_path / "n.pt", {})
    network, _ = load_weights(tmp_path / "n.pt")
    assert network.state_dict()["norm.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize("suffix", [".pt", ".json"])
def test_absent_file_is_named(path: Path, suffix: str) -> None:
    path.with_suffix(suffix).unlink()
    with pytest.raises(WeightsError, match=rf"generator\{suffix} does not exist\. Train it .* or name another"):
        load_weights(path)


def test_damaged_weights_are_refused(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(WeightsError, match=r"generator\.pt is not the file that its JSON describes .* anew"):
        load_weights(path)


def test_truncated_weights_are_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])
    edit_json(path, sha256=sha256_file(path))
    with pytest.raises(WeightsError, match=r"generator\.pt"):
        load_weights(path)


def test_something_else_than_weights_is_refused(path: Path) -> None:
    path.write_bytes(b"no weights at all")
    edit_json(path, sha256=sha256_file(path))
    with pytest.raises(WeightsError, match=r"generator\.pt"):
        load_weights(path)


class Payload:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def test_code_in_a_weight_file_does_not_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    replace_state(path, {"weight": Payload()})
    with pytest.raises(WeightsError, match=r"generator\.pt"):
        load_weights(path)
    path.write_bytes(pickle.dumps(Payload(), protocol=2))
    edit_json(path, sha256=sha256_file(path))
    with pytest.raises(WeightsError, match=r"generator\.pt"):
        load_weights(path)
    assert not (tmp_path / "executed").exists()


def test_every_key_and_no_other(generator: Generator, path: Path) -> None:
    state = generator.state_dict()
    missing = {key: value for key, value in state.items() if key != "synthesis.const"}
    for other, words in ((missing, r"Missing.*synthesis\.const"), ({**state, "extra": torch.ones(1)}, "Unexpected")):
        replace_state(path, other)
        with pytest.raises(WeightsError, match=rf"(?s)does not fit Generator.*{words}"):
            load_weights(path)


def test_other_shapes_are_refused(path: Path, tmp_path: Path) -> None:
    info = json.loads(path.with_suffix(".json").read_text())
    edit_json(path, arguments={**info["arguments"], "w_dim": 8})
    with pytest.raises(WeightsError, match=r"(?s)does not fit Generator.*size mismatch"):
        load_weights(path)


def test_arguments_that_build_no_network_are_refused(path: Path) -> None:
    edit_json(path, arguments={"resolution": 33})
    with pytest.raises(WeightsError, match=r"generator\.json"):
        load_weights(path)
    edit_json(path, arguments={"resolution": 32, "no_such_argument": 1})
    with pytest.raises(WeightsError, match=r"generator\.json"):
        load_weights(path)


def test_damaged_json_is_named(path: Path) -> None:
    path.with_suffix(".json").write_text("{")
    with pytest.raises(WeightsError, match=r"generator\.json is not valid JSON .* anew"):
        read_info(path)


@pytest.mark.parametrize("change", [{"format": 99}, {"network": "Pickle"}])
def test_json_of_another_release_is_refused(path: Path, change: dict[str, Any]) -> None:
    edit_json(path, **change)
    with pytest.raises(WeightsError, match=r"generator\.json is not of format 1 with a network of .*Generator"):
        read_info(path)


def test_info_says_which_network(path: Path) -> None:
    info = read_info(path)
    assert info["network"] == "Generator"
    assert info["format"] == 1


def test_writing_that_breaks_off_leaves_the_old_file(
    generator: Generator, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def broken(state: Any, file: IO[bytes]) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        save_weights(generator, path, INFO)
    assert path.read_bytes() == before
    assert sorted(file.name for file in path.parent.iterdir()) == ["generator.json", "generator.pt"]


def test_both_networks_of_the_gan_are_registered() -> None:
    assert NETWORKS["Generator"] is Generator
    assert NETWORKS["Discriminator"] is Discriminator


def test_whoever_loads_weights_knows_all_networks_of_the_bundle() -> None:
    script = "from bundle.networks.weights import NETWORKS; print(*NETWORKS)"
    known = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    shipped = {json.loads(path.read_text(encoding="utf-8"))["network"] for path in ROOT.glob("models/*/*.json")}
    assert shipped <= set(known.split())
    assert {"Generator", "ImageNetClassifier", "LatentGuide"} <= shipped
