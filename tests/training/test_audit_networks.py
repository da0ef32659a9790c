# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bundle.data import ImageData, open_dataset
from bundle.networks.embeddings import ContrastiveEmbedding, SiameseVerifier
from bundle.networks.weights import load_weights
from bundle.training.audit_networks import (
    AUDIT_NETWORKS,
    AuditTrainer,
    new_audit_network,
    recognition_of_others,
    verification_loss,
)
from bundle.training.checkpoint import CheckpointError
from bundle.training.errors import TrainingError
from tests.training.conftest import KillAt, Killed


@pytest.fixture
def data(tiny_dataset: Path, tmp_path: Path) -> ImageData:
    return open_dataset(tiny_dataset, tmp_path / "opened", resolution=32)


def small_network(name: str) -> ContrastiveEmbedding | SiameseVerifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return AUDIT_NETWORKS[name](1, side=32, widths=(4, 8), dimension=8)


def make_trainer(name: str, data: ImageData, output_dir: Path, **options: Any) -> AuditTrainer:
    options = {"max_epochs": 2, "batch_size": 8, "checkpoint_epochs": 1, **options}
    return AuditTrainer(name, data, data.dataset("train"), small_network(name), output_dir, "cpu", **options)


@pytest.mark.parametrize("name", AUDIT_NETWORKS)
def test_resumed_run_gives_the_same_bits(name: str, data: ImageData, tmp_path: Path) -> None:
    make_trainer(name, data, tmp_path / "whole").run()
    # 28 patients in batches of 8: three iterations an epoch.
    with pytest.raises(Killed):
        make_trainer(name, data, tmp_path / "killed", train_handlers=[KillAt(5)]).run()
    assert not (tmp_path / "killed" / "models" / f"{name}.json").exists()
    resumed = make_trainer(name, data, tmp_path / "killed")
    assert resumed.state.iteration == 3
    resumed.run()
    first, again = (load_weights(tmp_path / run / "models" / f"{name}.pt") for run in ("whole", "killed"))
    assert first[1]["scores"] == again[1]["scores"]
    for key, value in first[0].state_dict().items():
        assert torch.equal(value, again[0].state_dict()[key]), key


def test_weights_say_what_they_saw_and_nothing_that_names_it(data: ImageData, tmp_path: Path) -> None:
    make_trainer("audit_embedding", data, tmp_path).run()
    _, info = load_weights(tmp_path / "models" / "audit_embedding.pt")
    assert sorted(info["seen"]) == sorted(digest[:16] for digest in data.digests("train"))
    assert not set(info["seen"]) & {digest[:16] for digest in data.digests(("val", "test"))}
    assert info["scores"]["found"].keys() >= {"as they are", "mirrored"}
    assert 0.0 <= info["scores"]["test_above"] <= 1.0
    text = json.dumps(info)
    assert all(record.name not in text and record.patient_id not in text for record in data.records("train"))


def test_other_images_of_patients_are_told_from_those_of_others() -> None:
    similarity = torch.tensor(
        [
            [1.0, 0.9, 0.1, 0.2, 0.0],
            [0.9, 1.0, 0.3, 0.1, 0.2],
            [0.1, 0.3, 1.0, 0.25, 0.6],
            [0.2, 0.1, 0.25, 1.0, 0.1],
            [0.0, 0.2, 0.6, 0.1, 1.0],
        ]
    )
    # Pairs of one patient: 0.9 and 0.25; of two: 0.1 0.2 0.0 0.3 0.1 0.2 0.6 0.1, two of which are above 0.25.
    found = recognition_of_others(similarity, ["a", "a", "b", "b", "c"])
    assert found == {"pairs": 2, "auc": pytest.approx(14 / 16), "first": 0.75}
    assert recognition_of_others(similarity, list("abcde")) == {"pairs": 0}


def test_finished_network_is_checked_and_not_trained_again(
    data: ImageData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_trainer("audit_embedding", data, tmp_path).run()
    before = (tmp_path / "models" / "audit_embedding.pt").stat().st_mtime_ns
    make_trainer("audit_embedding", data, tmp_path).run()
    assert "Nothing to train" in capsys.readouterr().out
    assert (tmp_path / "models" / "audit_embedding.pt").stat().st_mtime_ns == before
    with pytest.raises(TrainingError, match="learning_rate"):
        make_trainer("audit_embedding", data, tmp_path, learning_rate=0.5)


def test_checkpoint_of_other_images_is_refused(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed):
        make_trainer("audit_embedding", data, tmp_path, train_handlers=[KillAt(5)]).run()
    monkeypatch.setattr(data, "content_sha256", lambda splits: "another")
    with pytest.raises(CheckpointError, match="content_sha256"):
        make_trainer("audit_embedding", data, tmp_path)


def test_verification_loss_weighs_pairs_of_one_patient_like_all_others() -> None:
    assert float(verification_loss(torch.zeros(5, 5))) == pytest.approx(math.log(2))
    assert float(verification_loss(20.0 * torch.eye(5) - 10.0)) < 1e-3
    assert float(verification_loss(10.0 - 20.0 * torch.eye(5))) == pytest.approx(10.0, abs=1e-3)
    only_same_wrong = torch.full((5, 5), -10.0)
    assert float(verification_loss(only_same_wrong)) == pytest.approx(5.0, abs=1e-3)


def test_networks_start_apart_and_the_same_every_time(data: ImageData) -> None:
    first, again, other = (
        new_audit_network(name, data, 0).state_dict()["layers.0.weight"]
        for name in ("audit_embedding", "audit_embedding", "audit_verifier")
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
