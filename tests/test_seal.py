# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Weights of an earlier version get the hash over their JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bundle.networks.model_set import load_models
from bundle.networks.weights import UnsealedError
from scripts import seal


@pytest.fixture
def earlier(toy_models: Path, tmp_path: Path) -> Path:
    """The toy models as an earlier version wrote them."""
    folder = Path(shutil.copytree(toy_models, tmp_path / "earlier"))
    for path in folder.glob("*.json"):
        info = json.loads(path.read_text(encoding="utf-8"))
        del info["json_sha256"]
        path.write_text(json.dumps(info), encoding="utf-8")
    return folder


def test_weights_of_an_earlier_version_are_usable_once_sealed(
    earlier: Path, toy_models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UnsealedError):
        load_models(earlier)
    seal.main([str(earlier)])
    shown = capsys.readouterr().out
    assert "gate_identity: sealed; GateClassifier, modality xray, resolution 32" in shown
    assert "threshold 0.999" in shown
    assert load_models(earlier).sha256() == load_models(toy_models).sha256()
    seal.main([str(earlier)])
    assert "gate_identity: was sealed" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["weights", "edit", "nothing"])
def test_mistakes_are_told_in_one_line(
    damage: str, earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if damage == "weights":
        (earlier / "class_guide.pt").write_bytes(b"")
    elif damage == "edit":
        seal.seal(earlier)
        path = earlier / "gate_identity.json"
        path.write_text(path.read_text().replace("0.999", "0.1"))
    folder = tmp_path / "nothing" if damage == "nothing" else earlier
    with pytest.raises(SystemExit) as stopped:
        seal.main([str(folder)])
    assert stopped.value.code == 1
    told = capsys.readouterr().err
    words = {"weights": "class_guide.pt", "edit": "was changed after it was written", "nothing": "holds no weights"}
    assert told.startswith("error: ") and words[damage] in told and told.count("\n") == 1
