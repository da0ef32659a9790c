# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch
from torch import Tensor

from bundle.evaluation.inversions import TITLES, rank_one
from bundle.latent.inverter import InversionError
from bundle.networks.embeddings import ContrastiveEmbedding
from bundle.networks.weights import WeightsError, read_info, save_weights
from tests.conftest import ROOT, cause, edit_info


@pytest.fixture
def models_dir(encoder_models: Path) -> Path:
    """The toy networks with an encoder and an untrained embedding."""
    info = read_info(encoder_models / "generator.pt")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        embedding = ContrastiveEmbedding(1, side=32, widths=(8, 16), dimension=16)
    save_weights(embedding, encoder_models / "audit_embedding.pt", {**info, "resolution": 128, "seen": []})
    return encoder_models


@pytest.fixture
def command(models_dir: Path, tiny_dataset: Path, tmp_path: Path, squeezenet_file: Path) -> Any:
    def run(run_id: str, **options: Any) -> dict[str, Any]:
        monai.bundle.run(
            run_id,
            config_file=str(ROOT / "configs" / "invert.json"),
            bundle_root=str(ROOT),
            output_dir=str(tmp_path / "out"),
            device="cpu",
            squeezenet_file=str(squeezenet_file),
            **{"dataset_dir": str(tiny_dataset), "models_dir": str(models_dir), "steps": 3, **options},
        )
        path = tmp_path / "out" / "judgement.json"
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return result

    return run


class Brightness(ContrastiveEmbedding):
    """An embedding that knows nothing but how bright an image is."""

    def __init__(self) -> None:
        super().__init__(1, side=32, widths=(8, 16), dimension=16)

    def forward(self, image: Tensor) -> Tensor:
        angle = image.mean(dim=(1, 2, 3))
        return torch.stack([angle.cos(), angle.sin()], dim=1)


def test_rank_one_counts_own_originals_their_copies_and_their_patients() -> None:
    def of(*levels: float) -> Tensor:
        return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 1, 32, 32)

    originals = of(-0.8, -0.4, 0.0, 0.4, 0.4)
    inverted = of(-0.75, -0.05, 0.05, 0.45, 0.35)
    own, same = rank_one(Brightness().eval(), inverted, originals, list("abcdd"), ["1", "2", "2", "3", "4"])
    assert own.tolist() == [True, False, True, True, True]
    assert same.tolist()[:3] == [True, True, True]


def test_judgement_reports_training_and_held_out_images_apart(
    command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command("invert")
    capsys.readouterr()
    result = command("judge")
    found = result["sets"]
    assert found.keys() == {"train", "held_out"}
    for scores in found.values():
        assert scores.keys() == TITLES.keys()
        assert scores["rank_one_chance"] == 1 / 40
        shares = ("rank_one", "rank_one_patient", "label_kept", "label_of_originals", "nearer")
        assert all(0.0 <= scores[key] <= 1.0 for key in shares)
        assert scores["lpips_nearest"] > 0
    assert found["train"]["n"] + found["held_out"]["n"] == 40
    costs = result["costs"]
    assert costs["encoder"]["cpu_seconds"] < costs["encoder and steps"]["cpu_seconds"]
    assert costs["encoder and steps"]["lpips"] < costs["encoder"]["lpips"]
    # The toy encoder predicts the mean of W for every image.
    assert costs["mean and steps"]["lpips"] == pytest.approx(costs["encoder and steps"]["lpips"], rel=1e-3)
    shown = capsys.readouterr().out
    assert all(title in shown for title in TITLES.values())
    assert "| mean and steps |" in shown
    assert str(tmp_path) not in json.dumps(result)


def test_images_of_another_place_are_judged_as_one_set(command: Any, elsewhere: Path) -> None:
    command("invert", dataset_dir=str(elsewhere))
    assert command("judge", dataset_dir=str(elsewhere))["sets"].keys() == {"all"}


def test_what_cannot_be_judged_is_refused_with_the_cure(command: Any, models_dir: Path, elsewhere: Path) -> None:
    def refusal(**options: Any) -> BaseException:
        with pytest.raises(RuntimeError) as raised:
            command("judge", **options)
        return cause(raised.value)

    missing = refusal()
    assert isinstance(missing, InversionError)
    assert "Invert the images with configs/invert.json" in str(missing)
    command("invert")
    assert "latents of other images. Name the dataset_dir" in str(refusal(dataset_dir=str(elsewhere)))
    edit_info(models_dir / "audit_embedding.pt", preprocessing="retina")
    other = refusal()
    assert isinstance(other, WeightsError)
    assert "is for another preprocessing than the generator" in str(other)
    for suffix in (".pt", ".json"):
        shutil.copyfile(models_dir / f"gate_class{suffix}", models_dir / f"audit_embedding{suffix}")
    assert "holds a GateClassifier" in str(refusal())
