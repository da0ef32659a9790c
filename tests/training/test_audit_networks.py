# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bundle.data import DataError, ImageData, open_dataset
from bundle.networks.embeddings import ContrastiveEmbedding, SiameseVerifier
from bundle.networks.weights import load_weights
from bundle.training.audit_networks import (
    AUDIT_NETWORKS,
    AuditTrainer,
    new_audit_network,
    new_audit_trainer,
    verification_loss,
)
from bundle.training.audit_pairs import audit_dataset, open_pairs
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
    return AuditTrainer(
        name, data, audit_dataset(data, options.get("pairs")), small_network(name), output_dir, "cpu", **options
    )


def other_people(folder: Path, known: Image.Image) -> Path:
    """Writes two images of each of 30 people, and a darker version of a known image as one of the first of them."""
    folder.mkdir()
    rows = ["image,label,patient_id"]
    for number in range(60):
        coarse = np.random.default_rng(number // 2).integers(0, 256, (5, 5), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((40, 40), Image.Resampling.BICUBIC)
        image.paste(128, (0, 0, 20 * (number % 2), 20))
        image.save(folder / f"{number}.png")
        rows.append(f"{number}.png,{number % 4 // 2},{number // 2}")
    known.point(lambda value: value * 0.8).save(folder / "known.png")
    (folder / "labels.csv").write_text("\n".join([*rows, "known.png,0,0"]), encoding="utf-8")
    return folder


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


def test_other_people_are_learnt_from_and_prove_it(
    data: ImageData, tiny_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = other_people(tmp_path / "others", Image.open(tiny_dataset / "normal" / "003.png"))
    pairs = open_pairs(str(folder), tmp_path, data, "auto", 0)
    assert pairs is not None
    assert "1 of 30 people are left out" in caplog.text
    assert (tmp_path / "pairs" / "private" / "splits.json").exists()
    make_trainer("audit_embedding", data, tmp_path, pairs=pairs).run()
    _, info = load_weights(tmp_path / "models" / "audit_embedding.pt")
    expected = {digest[:16] for part in (data, pairs) for digest in part.digests("train")}
    assert set(info["seen"]) == expected
    assert info["n_images"] == 28
    assert info["scores"]["other_images"]["pairs"] == len({r.patient_id for r in pairs.records(("val", "test"))})
    assert "low" in info["scores"]["other_images"]["auc"]
    with pytest.raises(TrainingError, match="pairs_sha256"):
        make_trainer("audit_embedding", data, tmp_path)


def test_pairs_of_the_same_patients_as_the_data_set_are_refused(
    data: ImageData, tiny_dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"--pairs_dir: no patients to train on \(train and extra\)"):
        open_pairs(str(tiny_dataset), tmp_path, data, "auto", 0)
    folder = other_people(tmp_path / "others", Image.open(tiny_dataset / "normal" / "003.png"))
    known = open_dataset(folder, tmp_path / "known", resolution=32)
    held_out = {record.patient_id for record in known.records(("val", "test"))}
    shared = known.without_patients({record.patient_id for record in known.records("train")} - held_out)
    with pytest.raises(DataError, match=r"no patients that are held out \(val and test\)"):
        open_pairs(str(folder), tmp_path / "known", shared, "auto", 0)


def test_training_starts_from_networks_that_have_not_seen_the_held_out_images(
    data: ImageData, tiny_dataset: Path, tmp_path: Path
) -> None:
    make_trainer("audit_embedding", data, tmp_path / "first").run()
    first = tmp_path / "first" / "models"
    options = {"data": data, "dataset": data.dataset("train"), "output_dir": tmp_path, "device": "cpu", "seed": 0}
    trainer = new_audit_trainer("audit_embedding", 1, str(first), options)
    known, _ = load_weights(first / "audit_embedding.pt")
    for key, value in known.state_dict().items():
        assert torch.equal(trainer.network.state_dict()[key], value), key
    trainer.run()
    _, info = load_weights(tmp_path / "models" / "audit_embedding.pt")
    assert info["training"]["init_from_sha256"] == load_weights(first / "audit_embedding.pt")[1]["sha256"]
    other = open_dataset(tiny_dataset, tmp_path / "resplit", resolution=32, seed=1)
    with pytest.raises(TrainingError, match="images that are val or test images here"):
        new_audit_trainer("audit_embedding", 1, str(first), {**options, "data": other})
    colour = {"data": open_dataset(tiny_dataset, tmp_path / "plain", resolution=32).with_preprocessing("plain")}
    with pytest.raises(TrainingError, match="another kind of image"):
        new_audit_trainer("audit_embedding", 1, str(first), {**options, **colour})


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
