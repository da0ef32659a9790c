# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Shipping: only whole sets that belong together, with their licence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bundle.networks.model_set import load_models
from bundle.networks.stylegan2 import Discriminator
from bundle.networks.weights import WeightsError, read_info, save_weights
from bundle.training.audit_networks import AUDIT_NETWORKS
from scripts.tools import ship


@pytest.fixture
def trained(toy_models: Path, tmp_path: Path) -> Path:
    """The toy models with a discriminator and the audit's networks."""
    folder = tmp_path / "trained"
    shutil.copytree(toy_models, folder)
    info = json.loads((folder / "generator.json").read_text(encoding="utf-8"))
    save_weights(Discriminator(32, channel_base=256, channel_max=16), folder / "discriminator.pt", info)
    for name, network in AUDIT_NETWORKS.items():
        save_weights(network(1, side=32, widths=(4, 4), dimension=4), folder / f"{name}.pt", {**info, "seen": []})
    return folder


def test_whole_set_is_shipped_with_its_licence(trained: Path, tmp_path: Path) -> None:
    ship.ship(trained, tmp_path / "models", "research only", main=True)
    shipped = load_models(tmp_path / "models" / "xray", names=ship.NETWORKS)
    assert {info["licence"] for info in shipped.infos.values()} == {"research only"}
    assert (tmp_path / "models" / "model.pt").read_bytes() == (trained / "generator.pt").read_bytes()
    assert read_info(tmp_path / "models" / "model.pt") == shipped.infos["generator"]


def test_incomplete_set_is_refused_in_one_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (trained / "gate_class.pt").unlink()
    with pytest.raises(SystemExit) as stopped:
        ship.main(["--source", str(trained), "--models", str(tmp_path / "models"), "--main"])
    assert stopped.value.code == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ") and "gate_class.pt does not exist" in told and told.count("\n") == 1
    assert not (tmp_path / "models").exists()


def test_files_too_large_for_the_zoo_are_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ship, "MOST_BYTES", 10)
    with pytest.raises(WeightsError, match="narrower"):
        ship.ship(trained, tmp_path / "models", "research only", main=True)
    assert not (tmp_path / "models").exists()
