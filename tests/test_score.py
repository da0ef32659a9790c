# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The bars of shipped weights: a generator that copies its training images must fail, one that draws noise too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from bundle.data import ImageData, Modality, open_dataset
from bundle.data.subset import write_subset
from bundle.evaluation.score import equal_draws, score_models
from bundle.networks.model_set import ModelSet
from bundle.networks.stylegan2 import Generator


class Replay(nn.Module):
    """Stands for a synthesis network that has memorised its images of one class after the other."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = images

    def forward(self, w: Tensor) -> Tensor:
        """Returns one stored image per latent."""
        return self.images[: len(w)]


@pytest.fixture(scope="module")
def data(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    """Small images with a test split."""
    return open_dataset(tiny_dataset, tmp_path_factory.mktemp("data"), resolution=32)


def rows_of(generator: Generator, data: ImageData, output_dir: Path, squeezenet_file: Path) -> list[dict[str, Any]]:
    """Scores a generator."""
    score_models(ModelSet({"generator": {}}, {"generator": generator}), data, str(output_dir), 2, str(squeezenet_file))
    rows: list[dict[str, Any]] = json.loads((output_dir / "scores.json").read_text(encoding="utf-8"))["rows"]
    return rows


def test_copies_are_found(data: ImageData, tmp_path: Path, squeezenet_file: Path) -> None:
    generator = Generator(32, channel_base=128, channel_max=8)
    generator.synthesis = Replay(data.tensors("train")[0])  # type: ignore[assignment]
    near = [row for row in rows_of(generator, data, tmp_path, squeezenet_file) if row["measure"].startswith("LPIPS")]
    assert len(near) == 2
    assert not any(row["met"] for row in near)
    assert all(row["mean"] < 1e-4 < row["bar"] for row in near)


def test_memory_is_told_from_crowding(data: ImageData, tmp_path: Path, squeezenet_file: Path) -> None:
    """Copies of training images are nearer to these than to as many held-out ones; noise is as far from both."""
    generator = Generator(32, channel_base=128, channel_max=8).eval()
    rows_of(generator, data, tmp_path / "noise", squeezenet_file)
    generator.synthesis = Replay(data.tensors("train")[0])  # type: ignore[assignment]
    rows_of(generator, data, tmp_path / "copies", squeezenet_file)
    noise, copies = (
        json.loads((tmp_path / name / "scores.json").read_text(encoding="utf-8"))["near_at_equal_n"]
        for name in ("noise", "copies")
    )
    for name in ("normal", "tuberculosis"):
        assert copies[name]["to_training"] < 0.1 * copies[name]["to_held_out"]
        assert copies[name]["difference"] == pytest.approx(copies[name]["to_training"] - copies[name]["to_held_out"])
        assert abs(noise[name]["difference"]) < 0.5 * noise[name]["to_held_out"]


def test_training_and_held_out_images_are_compared_at_equal_numbers_of_each_class() -> None:
    train, held_out = torch.tensor([0] * 30 + [1] * 4), torch.tensor([1, 1, 0, 1, 1, 0, 1, 1, 0])
    seen, unseen = equal_draws(train, held_out, seed=0)
    assert train[seen].bincount().tolist() == held_out[unseen].bincount().tolist() == [3, 4]
    assert len(set(seen.tolist())) == len(set(unseen.tolist())) == 7
    assert not torch.equal(equal_draws(train, held_out, seed=1)[0], seen)


def test_noise_is_told_from_images_of_the_class(
    data: ImageData, tmp_path: Path, squeezenet_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    rows = rows_of(Generator(32, channel_base=128, channel_max=8).eval(), data, tmp_path, squeezenet_file)
    kid = [row for row in rows if row["measure"].startswith("KID")]
    assert [row["class"] for row in kid] == ["normal", "tuberculosis"]
    assert not any(row["met"] for row in kid)
    near, control = ([row["mean"] for row in rows if row["measure"].startswith(name)] for name in ("LPIPS", "control"))
    assert len(control) == 2
    assert all(with_copies < 0.5 * without for with_copies, without in zip(control, near, strict=True))
    assert not any(row["met"] for row in rows if row["measure"].startswith("control"))
    shown = capsys.readouterr().out
    assert "**no**" in shown
    picture = np.asarray(Image.open(tmp_path / "samples.png"))
    assert picture.shape[0] < picture.shape[1]
    assert picture.std() > 0
    scale = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    weak, strong = scale["kid_of_blurred_training_images"].values()
    assert weak < strong
    assert f"blurred (sigma in pixels): {weak:.3g} at 0.5, {strong:.3g} at 0.8" in shown


class Brightness(nn.Module):
    """Grades an image by its mean brightness, -1 to 1, in three grades."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.tensor([-0.6, 0.0, 0.6]))

    def forward(self, image: Tensor) -> Tensor:
        """Returns logits [N, 3]."""
        return -40.0 * (image.mean(dim=(1, 2, 3))[:, None] - self.centres).square()


class Shades(nn.Module):
    """Stands for a synthesis network whose images are as bright as their first latent says, with a little noise."""

    def forward(self, w: Tensor) -> Tensor:
        """Returns one image for each latent."""
        return (w[:, :1, None, None] + 0.05 * torch.randn(len(w), 1, 32, 32)).clamp(-1.0, 1.0)


def test_grades_of_samples_must_rise(tmp_path: Path, squeezenet_file: Path) -> None:
    folder = tmp_path / "data"
    for grade, level in enumerate((50, 128, 200)):
        (folder / "abc"[grade]).mkdir(parents=True)
        for i in range(14):
            pixels = np.random.default_rng(100 * grade + i).integers(level - 40, level + 40, (32, 32), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "abc"[grade] / f"{i}.png")
    data = open_dataset(folder, tmp_path, Modality("toy", 1, ("a", "b", "c"), ordered=True), 32)
    generator = Generator(32, channel_base=128, channel_max=8, num_classes=3)
    generator.synthesis = Shades()  # type: ignore[assignment]

    def rising(levels: list[float]) -> list[bool]:
        values = torch.tensor(levels)[:, None]
        generator.mapping.forward = lambda z, label: values[label].expand(-1, 8)  # type: ignore[method-assign]
        networks = {"generator": generator, "gate_class": Brightness()}
        score_models(ModelSet({"generator": {}}, networks), data, str(tmp_path), 2, str(squeezenet_file))
        rows = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["rows"]
        assert [row["class"] for row in rows if row["measure"] == "mean grade by gate_class"] == ["b", "c"]
        return [row["met"] for row in rows if row["measure"] == "mean grade by gate_class"]

    assert rising([-0.6, 0.0, 0.6]) == [True, True]
    assert rising([-0.6, 0.6, 0.0]) == [True, False]


def test_one_class_alone_has_no_bar_for_its_kid(
    tmp_path: Path, squeezenet_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    for i in range(14):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / f"{i}.png")
    lines = ["image,label", *(f"{i}.png,0" for i in range(14))]
    (tmp_path / "data" / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    data = open_dataset(tmp_path / "data", tmp_path, Modality("toy", 1, ("a",)), 32)
    generator = Generator(32, channel_base=128, channel_max=8, num_classes=1).eval()
    kid, variety, near, control = rows_of(generator, data, tmp_path, squeezenet_file)
    assert (kid["measure"], kid["bar"], kid["met"]) == ("KID to training images", None, None)
    assert all(isinstance(row["met"], bool) for row in (variety, near, control))
    assert "no bar: there is one class alone" in capsys.readouterr().out


def test_subset_keeps_every_held_out_image_and_few_others(data: ImageData, tmp_path: Path) -> None:
    write_subset(data, tmp_path / "images", 10)
    part = open_dataset(tmp_path / "images", tmp_path, resolution=32)
    assert [record.label for record in part.records("train")] == [0] * 5 + [1] * 5
    for split in ("val", "test"):
        assert [r.patient_id for r in part.records(split)] == [r.patient_id for r in data.records(split)]
    with pytest.raises(ValueError, match="multiple of 2"):
        write_subset(data, tmp_path / "more", 5)
