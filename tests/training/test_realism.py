# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.data import ImageData, open_dataset
from bundle.networks.realism import RealismJudge
from bundle.networks.weights import WeightsError, load_weights
from bundle.training.errors import TrainingError
from bundle.training.realism import JUDGES, REFUSED, fit_realism

COUNTS = {"train": 24, "val": 20, "test": 20}


def make_data(folder: Path, counts: dict[str, int] = COUNTS, seed: int = 0) -> ImageData:
    """Discs left (normal) or right (tuberculosis) in noise, of as many people."""
    folder.mkdir()
    random, (rows, columns) = np.random.default_rng(seed), np.mgrid[:40, :40]
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["image", "label", "patient_id", "split"])
        for split, count in counts.items():
            for number in range(count):
                disc = (rows - 20) ** 2 + (columns - 13 - 14 * (number % 2)) ** 2 < 100
                pixels = random.integers(0, 100, (40, 40)) + 120 * disc
                name = f"{split}_{number:03d}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
                table.writerow([name, number % 2, f"p-{split}-{number}", split])
    return open_dataset(str(folder), str(folder.with_name("out")), "xray", 32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return make_data(tmp_path_factory.mktemp("realism") / "data")


@pytest.mark.parametrize("name", JUDGES)
def test_the_threshold_refuses_the_stated_share_of_validation_images(
    name: str, data: ImageData, resnet_file: Path, tmp_path: Path
) -> None:
    fit_realism(data, tmp_path, resnet18_file=resnet_file)
    network, info = load_weights(tmp_path / "models" / f"{name}.pt")
    assert isinstance(network, RealismJudge)
    assert len(network.variances[0]) == 6  # half of the smaller class
    assert info["scores"]["val"] == {"n": 20, "refused": pytest.approx(REFUSED, abs=0.05)}
    images, labels, _ = data.tensors("val")
    refused = [
        float(network(image[None])[0, label].expm1()) > info["scores"]["threshold"]
        for image, label in zip(images, labels, strict=True)
    ]
    assert np.mean(refused) == pytest.approx(REFUSED, abs=0.11)  # weights are saved in fp16
    swapped = [
        float(network(image[None])[0, 1 - label].expm1()) > info["scores"]["threshold"]
        for image, label in zip(images, labels, strict=True)
    ]
    assert np.mean(swapped) > 2 * np.mean(refused)
    assert "train_" not in json.dumps(info)


def test_a_fitted_judge_is_kept_and_another_one_is_not_overwritten(
    data: ImageData, resnet_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit_realism(data, tmp_path, resnet18_file=resnet_file)
    before = (tmp_path / "models" / "gate_realism.pt").stat().st_mtime_ns
    fit_realism(data, tmp_path, resnet18_file=resnet_file)
    assert "Nothing to fit" in capsys.readouterr().out
    assert (tmp_path / "models" / "gate_realism.pt").stat().st_mtime_ns == before
    with pytest.raises(WeightsError, match=r"fitted to other images \(seed differ\).*another output_dir"):
        fit_realism(data, tmp_path, seed=1, resnet18_file=resnet_file)


@pytest.mark.parametrize(
    ("counts", "words"),
    [({"train": 3, "val": 10, "test": 10}, "at least 2 training images of each class; tuberculosis has 1")],
)
def test_too_few_images_are_refused(counts: dict[str, int], words: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=words):
        fit_realism(make_data(tmp_path / "data", counts), tmp_path / "run")
    assert not (tmp_path / "run").exists()
