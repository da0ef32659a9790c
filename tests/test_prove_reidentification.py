# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from PIL import Image

from bundle.networks.weights import load_weights, save_weights
from scripts.tools.prove_reidentification import main
from tests.hospital import Networks


@pytest.fixture
def models_dir(networks: Networks, tmp_path: Path) -> Path:
    for name, network in networks[0].items():
        save_weights(network, tmp_path / "models" / f"{name}.pt", networks[1][name])
    return tmp_path / "models"


@pytest.fixture
def revisited(hospital: Path, tmp_path: Path) -> Path:
    """The hospital, whose second images of held-out patients differ from the first by a white and a black mark."""
    folder = tmp_path / "revisited"
    shutil.copytree(hospital, folder)
    known = set()
    with (folder / "labels.csv").open(encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if row["split"] != "train" and row["patient_id"] in known:
                image = Image.open(folder / row["image"])
                image.paste(255, (0, 0, 5, 10))
                image.paste(0, (5, 0, 10, 10))
                image.save(folder / row["image"])
            known.add(row["patient_id"])
    return folder


def test_people_whom_the_networks_have_not_seen_prove_them(
    revisited: Path, models_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (revisited / "labels.csv").open(encoding="utf-8") as stream:
        held_out = [row["patient_id"] for row in csv.DictReader(stream) if row["split"] != "train"]
    arguments = ["--models_dir", str(models_dir), "--dataset_dir", str(revisited), "--resolution", "32"]
    main([*arguments, "--output_dir", str(tmp_path / "proof"), "--splits", "train", "val", "test", "--record"])
    told = capsys.readouterr().out
    assert f"patients: {len(set(held_out))}" in told  # those of train are left out
    assert not any(patient in told for patient in held_out)
    for name in ("audit_embedding", "audit_verifier"):
        _, info = load_weights(models_dir / f"{name}.pt")
        assert info["scores"]["other_images"]["images"] == len(held_out)
        assert info["scores"]["other_images"]["auc"]["low"] > 0.9
        assert "threshold" in info["scores"]


def test_people_in_the_training_images_are_left_out(
    hospital: Path, models_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--models_dir", str(models_dir), "--dataset_dir", str(hospital), "--resolution", "32"]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--output_dir", str(tmp_path / "proof"), "--trained_on", str(hospital)])
    assert stopped.value.code == 1
    assert "There are no images of people whom audit_embedding has not seen" in capsys.readouterr().err


def test_versions_of_one_image_prove_nothing(
    hospital: Path, models_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--models_dir", str(models_dir), "--dataset_dir", str(hospital), "--resolution", "32"]
    with pytest.raises(SystemExit):
        main([*arguments, "--output_dir", str(tmp_path / "proof")])
    assert "two different ones of one" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["{'file': }", "{}.x", "{[]: 1}", "{1, 2}"])
def test_layout_that_cannot_be_read_is_refused_in_one_line(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--models_dir", str(tmp_path), "--dataset_dir", str(tmp_path), "--output_dir", str(tmp_path / "proof")]
    with pytest.raises(SystemExit) as stopped:
        main([*folders, "--layout", layout])
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: --layout {layout!r} cannot be read. Write the columns")
