# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""A kind of image that the bundle does not know, brought by an overlay alone, through every command."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT, edit_info
from tests.test_evaluation import do_little, let_pass

SIDE = 32
SPLITS = ["train"] * 40 + ["val"] * 16 + ["test"] * 24 + ["extra"] * 6


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Round and square cells of two sizes each, on a ground that tells one patient from another."""
    folder = tmp_path_factory.mktemp("slides")
    rows, columns = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    with (folder / "cells.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["slide", "finding", "set", "case"])
        for number, split in enumerate(SPLITS):
            draw = np.random.default_rng(number)
            ground = Image.fromarray(draw.integers(0, 120, (6, 6), dtype=np.uint8)).resize((SIDE, SIDE))
            radius = draw.uniform(5, 9)
            square = np.maximum(abs(rows), abs(columns)) < radius
            cell = square if number % 2 else np.hypot(rows, columns) < radius
            pixels = np.where(cell, 230, np.asarray(ground)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"slide{number:02d}.png")
            table.writerow([f"slide{number:02d}", ("round", "square")[number % 2], split, f"case{number}"])
    return folder


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory, slides: Path) -> Path:
    path = tmp_path_factory.mktemp("overlay") / "cells.json"
    modality: dict[str, Any] = {
        "_target_": "bundle.data.Modality",
        "name": "cells",
        "channels": 1,
        "class_names": ["round", "square"],
    }
    modality |= {"lambda_class": 2, "lambda_prior": 4, "lambda_real": 3}
    modality |= {"class_epochs_share": 1, "class_learning_rate_factor": 0.5}
    layout = {"file": "cells.csv", "image": "slide", "label": "finding", "split": "set", "patient_id": "case"}
    path.write_text(json.dumps({"modality": modality, "layout": layout, "resolution": SIDE}), encoding="utf-8")
    return path


def test_a_kind_of_image_of_ones_own_goes_through_every_command(
    slides: Path,
    overlay: Path,
    resnet_file: Path,
    squeezenet_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    do_little(monkeypatch)
    for module in ("assessment", "controls", "distances", "thresholds"):
        monkeypatch.setattr(f"bundle.auditing.{module}.DRAWS", 40)
    monkeypatch.setattr("bundle.auditing.assessment.HALVES", 4)
    monkeypatch.setattr("bundle.walk.distillation.HELD_OUT_LATENTS", 64)
    home = tmp_path / "cells"
    models = home / "models"

    def run(run_id: str, configs: str, options: dict[str, Any]) -> None:
        files = [str(ROOT / "configs" / f"{name}.json") for name in configs.split()]
        monai.bundle.run(run_id, config_file=[*files, str(overlay)], bundle_root=str(ROOT), **options)

    real: dict[str, Any] = {"dataset_dir": str(slides)}
    trained: dict[str, Any] = {**real, "output_dir": str(home)}
    trunk: dict[str, Any] = {"squeezenet_file": str(squeezenet_file)}
    run("check_data", "check_data", trained)
    kimg = {"total_kimg": 0.064, "epoch_kimg": 0.032, "measure_kimg": 0.064}
    run("run", "train_gan", {**trained, **trunk, **kimg, "discriminator": "residual"})
    run("run", "train_guides", {**trained, "resnet18_file": str(resnet_file), "max_epochs": 2})
    few_steps = {"walk_settings#steps": 10}
    few = {"n_latents": 256, "n_visited": 64, "max_epochs": 1, **few_steps}
    run("run", "train_latent_guides", {"output_dir": str(home), **few})
    run("run", "train_audit", {**trained, "max_epochs": 2})
    assert json.loads((models / "generator.json").read_text(encoding="utf-8"))["modality"] == "cells"
    gate_class = json.loads((models / "gate_class.json").read_text(encoding="utf-8"))
    assert gate_class["class_names"] == ["round", "square"]
    assert (gate_class["epochs"], gate_class["training"]["learning_rate"]) == (2, 0.001)

    let_pass(models)  # networks of a few steps' training agree on hardly any class, and no image looks real
    edit_info(models / "gate_realism.pt", scores={"threshold": 1e6, "apart": [0.0, 0.0]})
    made: dict[str, Any] = {**real, "models_dir": str(models)}
    cohort = tmp_path / "cohort" / "cohort"
    run("generate", "plan", {**made, **few_steps, "n_images": 24, "n_points": 5, "output_dir": str(cohort.parent)})
    manifest = json.loads((cohort / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["modality"], manifest["class_names"]) == ("cells", ["round", "square"])
    weights = manifest["configuration"]["weights"]
    assert (weights["lambda_class"], weights["lambda_prior"], weights["lambda_real"]) == (2, 4, 3)
    with pytest.raises(SystemExit):
        run("audit", "audit", {**made, **trunk, "cohort_dir": str(cohort), "output_dir": str(tmp_path / "audit")})
    assert (tmp_path / "audit" / "report.html").exists()
    little = {"n_images": 24, "n_points": 4, "long_points": 5, "long_pairs": 2, "max_epochs": 1}
    little |= {"walk_settings#steps": 3}
    evaluation = tmp_path / "evaluation"
    run("evaluate", "evaluate evaluate_quick", {**made, **trunk, **little, "output_dir": str(evaluation)})
    results = json.loads((evaluation / "results.json").read_text(encoding="utf-8"))
    assert results["source"]["objectives"]["balanced"] == weights
    # Extra images are behind the generator, but not behind Real and no members of an attack.
    assert (results["real"]["train"]["images"], results["extra_images"]) == (46, 6)
    assert results["quotas"] == {"round": 12, "square": 12}
    assert "6 of them extra" in (evaluation / "report.html").read_text(encoding="utf-8")
