# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from torch import nn

from bundle.files import sha256_file
from bundle.networks.classifiers import GateClassifier
from bundle.networks.stylegan2 import Discriminator, Generator
from bundle.networks.weights import (
    NETWORKS,
    UnsealedError,
    WeightsError,
    fill_network,
    load_weights,
    read_info,
    save_weights,
    seal_weights,
)
from tests.conftest import ROOT, edit_info

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


def replace_state(path: Path, state: Any) -> None:
    """Other content under a JSON that vouches for it."""
    torch.save(state, path)
    edit_info(path, sha256=sha256_file(path))


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
    edit_info(path, sha256=sha256_file(path))
    with pytest.raises(WeightsError, match=r"generator\.pt"):
        load_weights(path)


def test_something_else_than_weights_is_refused(path: Path) -> None:
    path.write_bytes(b"no weights at all")
    edit_info(path, sha256=sha256_file(path))
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
    edit_info(path, sha256=sha256_file(path))
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
    edit_info(path, arguments={**info["arguments"], "w_dim": 8})
    with pytest.raises(WeightsError, match=r"(?s)does not fit Generator.*size mismatch"):
        load_weights(path)


def test_arguments_that_build_no_network_are_refused(path: Path) -> None:
    edit_info(path, arguments={"resolution": 33})
    with pytest.raises(WeightsError, match=r"generator\.json"):
        load_weights(path)
    edit_info(path, arguments={"resolution": 32, "no_such_argument": 1})
    with pytest.raises(WeightsError, match=r"generator\.json"):
        load_weights(path)


def test_damaged_json_is_named(path: Path) -> None:
    path.with_suffix(".json").write_text("{")
    with pytest.raises(WeightsError, match=r"generator\.json is not valid JSON .* anew"):
        read_info(path)


@pytest.mark.parametrize("change", [{"format": 99}, {"network": "Pickle"}])
def test_json_of_another_release_is_refused(path: Path, change: dict[str, Any]) -> None:
    edit_info(path, **change)
    with pytest.raises(WeightsError, match=r"generator\.json is not of format 1 with a network of .*Generator"):
        read_info(path)


def one_line(error: BaseException) -> str:
    """The message, which names no other library's traceback and fits in a line."""
    text = str(error)
    assert "\n" not in text
    assert len(text) < 1200
    return text


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"resolution": 32', '"resolution": 16'),
        ('"normal"', '"healthy"'),
        ('"modality": "xray"', '"modality": "fundus"'),
        ('"threshold": 0.5', '"threshold": 0.1'),
        ('"z_dim": 4', '"z_dim": 5'),
        ("{\n", '{\n  "licence": "free",\n'),
        ('"json_sha256": "', '"json_sha256": "0'),
    ],
)
def test_every_edit_of_a_json_is_noticed(generator: Generator, path: Path, old: str, new: str) -> None:
    save_weights(generator, path, {**INFO, "scores": {"threshold": 0.5}})
    text = path.with_suffix(".json").read_text()
    assert old in text
    path.with_suffix(".json").write_text(text.replace(old, new, 1))
    with pytest.raises(WeightsError) as caught:
        load_weights(path)
    assert f"{path.with_suffix('.json')} was changed after it was written" in one_line(caught.value)


def test_the_hash_of_a_json_covers_the_weights(generator: Generator, path: Path, tmp_path: Path) -> None:
    before = read_info(path)["json_sha256"]
    torch.nn.init.zeros_(next(generator.parameters()))
    save_weights(generator, path, INFO)
    assert read_info(path)["json_sha256"] != before
    # As it comes back, content gives the same hash.
    save_weights(generator, tmp_path / "again.pt", read_info(path))
    assert read_info(tmp_path / "again.pt")["json_sha256"] == read_info(path)["json_sha256"]


def test_json_without_a_hash_is_refused_and_can_be_sealed(path: Path) -> None:
    sealed = path.with_suffix(".json").read_bytes()
    info = json.loads(sealed)
    del info["json_sha256"]
    path.with_suffix(".json").write_text(json.dumps(info))
    with pytest.raises(UnsealedError) as caught:
        load_weights(path)
    assert f"written by an earlier version and has no hash over itself. If nobody has changed it, python -m scripts.seal {path.parent} adds one" in one_line(caught.value)  # fmt: skip  # noqa: E501
    assert seal_weights(path)[1]
    assert path.with_suffix(".json").read_bytes() == sealed
    assert not seal_weights(path)[1]


def test_what_is_damaged_is_not_sealed(path: Path) -> None:
    info = json.loads(path.with_suffix(".json").read_text())
    for change in ({"json_sha256": "0" * 64}, {"json_sha256": None, "class_names": ["../a", "b"]}):
        changed = {key: value for key, value in {**info, **change}.items() if value is not None}
        path.with_suffix(".json").write_text(json.dumps(changed))
        with pytest.raises(WeightsError):
            seal_weights(path)
        assert json.loads(path.with_suffix(".json").read_text()) == changed
    del info["json_sha256"]
    path.with_suffix(".json").write_text(json.dumps(info))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="SHA-256"):
        seal_weights(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"a": ' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b"[]", "not of format 1"),
        (b"3", "not of format 1"),
        (b'{"format": 1, "network": ["Generator"]}', "not of format 1"),
        (b'{"format": 1, "network": {}}', "not of format 1"),
        (b'{"format": 1, "network": "Generator", "scores": NaN}', "not valid JSON"),
        (b'{"format": 1, "network": "Generator", "scores": -Infinity}', "not valid JSON"),
        (b'{"format": 1, "network": "Generator", "scores": 1e999}', "not valid JSON"),
        (b'{"format": 1, "network": "Generator", "n": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"", "not valid JSON"),
    ],
)
def test_broken_json_is_told_in_one_line(path: Path, content: bytes, words: str) -> None:
    path.with_suffix(".json").write_bytes(content)
    for read in (read_info, load_weights, seal_weights):
        with pytest.raises(WeightsError) as caught:
            read(path)
        assert words in one_line(caught.value)
        assert str(path.with_suffix(".json")) in str(caught.value)


@pytest.mark.parametrize("suffix", [".pt", ".json"])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda file: Path(file).symlink_to("/dev/zero")])
def test_what_is_not_a_file_is_not_waited_for(path: Path, suffix: str, make: Any) -> None:
    file = path.with_suffix(suffix)
    file.unlink()
    make(file)
    with pytest.raises(WeightsError) as caught:
        load_weights(path)
    assert f"{file} is not a file" in one_line(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arguments": [1]}, "arguments is [1], not a dictionary"),
        ({"channels": 2}, "channels is 2, not 1 or 3"),
        ({"channels": 3}, "channels is 3, that of the network 1"),
        ({"class_names": "ab"}, "class_names: they must be a list"),
        ({"class_names": ["a", "b", "c"]}, "class_names: there are 3, and the number of classes is 2"),
        ({"class_names": ["../../../escaped", "b"]}, "class_names: '../../../escaped' holds /"),
        ({"class_names": ["a", 1]}, "class_names: 1 is not a text"),
        ({"cpu_seconds": "9"}, "cpu_seconds is '9', not a number"),
        ({"licence": 3}, "licence is 3, not a text"),
        ({"modality": "../xray"}, "modality is '../xray', not a name"),
        ({"modality": ["xray"]}, "modality is ['xray'], not a name"),
        ({"resolution": 512}, "resolution is 512, that of the network 32"),
        ({"resolution": "32"}, "resolution is '32', not a whole number"),
        ({"resolution": True}, "resolution is True, not a whole number"),
        ({"scores": "high"}, "scores is 'high', not a dictionary"),
        ({"scores": {"threshold": "0.1"}}, "scores.threshold is '0.1', not a number"),
        ({"seed": -1}, "seed is -1, not a whole number"),
        ({"seen": "abc"}, "seen is 'abc', not a list of texts"),
        ({"sha256": 3}, "sha256 is 3, not a SHA-256"),
        ({"split_sha256": "../x"}, "split_sha256 is '../x', not a SHA-256"),
        ({"training": []}, "training is [], not a dictionary"),
        ({"arguments": None}, "arguments is missing"),
        ({"sha256": None}, "sha256 is missing"),
    ],
)
def test_entries_that_make_no_sense_are_refused_whatever_the_hash(
    path: Path, change: dict[str, Any], words: str
) -> None:
    edit_info(path, **change)
    for read in (read_info, load_weights):
        with pytest.raises(WeightsError) as caught:
            read(path)
        assert f"{path.with_suffix('.json')} cannot be used: {words}" in one_line(caught.value)


def test_patients_of_an_identity_network_are_those_of_the_data(tmp_path: Path) -> None:
    network = GateClassifier(1, 12, identity=True, growth=4, layers=(1, 1))
    save_weights(network, tmp_path / "n.pt", {**INFO, "n_identities": 12})
    assert read_info(tmp_path / "n.pt")["n_identities"] == 12
    edit_info(tmp_path / "n.pt", n_identities=13)
    with pytest.raises(WeightsError, match="n_identities is 13, that of the network 12"):
        read_info(tmp_path / "n.pt")


def test_what_a_caller_needs_is_asked_for_by_name(path: Path) -> None:
    assert read_info(path, ("class_names", "arguments.resolution"))["resolution"] == 32
    for read in (read_info, load_weights):
        with pytest.raises(WeightsError, match=r"generator\.json cannot be used: seed, scores\.threshold is missing"):
            read(path, required=("seed", "modality", "scores.threshold"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused(generator: Generator, path: Path, value: float) -> None:
    state = generator.state_dict()
    key = next(key for key in state if key.endswith("bias"))
    state[key].view(-1)[0] = value
    replace_state(path, state)
    with pytest.raises(WeightsError, match=rf"generator\.pt holds values that are no numbers, in {key}"):
        load_weights(path)
    with pytest.raises(WeightsError, match=r"is not written: .* no numbers in half precision"):
        save_weights(generator, path, INFO)


def test_scores_that_are_no_numbers_are_written_as_null(generator: Generator, path: Path) -> None:
    save_weights(generator, path, {**INFO, "scores": {"kappa": float("nan"), "course": (1.0, float("inf"))}})
    assert read_info(path)["scores"] == {"kappa": None, "course": [1.0, None]}


def test_what_could_not_be_read_again_is_not_written(generator: Generator, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="class_names: 'a/b' holds /"):
        save_weights(generator, tmp_path / "n.pt", {**INFO, "class_names": ["a/b", "c"]})
    assert list(tmp_path.iterdir()) == []


def test_network_is_filled_with_its_own_weights_only(generator: Generator, path: Path) -> None:
    other = Generator(32, z_dim=4, w_dim=4, channel_base=128, channel_max=4, noise=True)
    filled = fill_network(other, path)
    assert all(
        torch.equal(value, filled.state_dict()[key]) for key, value in load_weights(path)[0].state_dict().items()
    )
    with pytest.raises(WeightsError) as caught:
        fill_network(Generator(32, z_dim=8, w_dim=4, channel_base=128, channel_max=4, noise=True), path)
    assert "generator.pt holds Generator({'channel_base': 128" in one_line(caught.value)


def test_misfits_are_told_in_one_line(path: Path) -> None:
    replace_state(path, {str(number): torch.ones(1) for number in range(1000)})
    with pytest.raises(WeightsError, match="does not fit") as caught:
        load_weights(path)
    one_line(caught.value)


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
