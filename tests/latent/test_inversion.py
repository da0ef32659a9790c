# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""`invert` from end to end, as the command line runs it, and the file that it writes."""

from __future__ import annotations

import csv
import shutil
import stat
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import pytest
import torch
from PIL import Image

from bundle.data import DataError
from bundle.files import DamagedError, save_tensors
from bundle.latent import inversion
from bundle.latent.inverter import InversionError, Inverter
from bundle.latent.real_latents import PARTS, RealLatents, load_latents
from bundle.latent.reconstruction import synthesise
from bundle.networks.stylegan2 import Generator
from bundle.networks.weights import WeightsError, load_weights
from tests.conftest import ROOT, cause, edit_info
from tests.training.conftest import Killed


@pytest.fixture
def invert(encoder_models: Path, tiny_dataset: Path, tmp_path: Path, squeezenet_file: Path) -> Any:
    def run(output_dir: str = "out", **options: Any) -> Path:
        monai.bundle.run(
            "invert",
            config_file=str(ROOT / "configs" / "invert.json"),
            bundle_root=str(ROOT),
            output_dir=str(tmp_path / output_dir),
            device="cpu",
            squeezenet_file=str(squeezenet_file),
            **{"dataset_dir": str(tiny_dataset), "models_dir": str(encoder_models), "steps": 2, **options},
        )
        return tmp_path / output_dir / "private" / "latents.pt"

    return run


def refusal(invert: Any, *arguments: Any, **options: Any) -> BaseException:
    with pytest.raises(RuntimeError) as raised:
        invert(*arguments, **options)
    return cause(raised.value)


def test_command_writes_private_latents_and_pairs(invert: Any, encoder_models: Path, tmp_path: Path) -> None:
    path = invert(steps=3)
    content = torch.load(path, weights_only=True)
    assert content["w"].shape == (40, 8, 8)
    generator, info = load_weights(encoder_models / "generator.pt")
    latents = load_latents(path, info["sha256"])
    assert isinstance(latents, RealLatents)
    assert sorted(set(latents.labels)) == [0, 1]
    assert len(set(latents.patient_ids)) == len(set(latents.digests)) == 40
    assert all(isinstance(patient, str) for patient in latents.patient_ids)
    assert len(latents.indices(("train",))) + len(latents.indices(("val", "test"))) == 40
    assert latents.split_sha256 == info["split_sha256"]
    assert latents.settings["steps"] == 3
    assert isinstance(generator, Generator)
    assert torch.isfinite(synthesise(generator, latents.w)).all()
    with Image.open(path.with_name("pairs.png")) as picture:
        assert picture.height >= 4 * 32
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == ["private"]
    for entry in (path.parent, path, path.with_name("pairs.png")):
        assert not stat.S_IMODE(entry.stat().st_mode) & 0o077
    assert not (path.parent / PARTS).exists()


def test_interrupted_run_resumes_to_the_same_bits(
    invert: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = invert("whole").read_bytes()
    calls: list[int] = []
    call = Inverter.__call__

    def counted(self: Inverter, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        calls.append(len(images))
        if len(calls) == 2:
            raise Killed
        return call(self, images, labels)

    monkeypatch.setattr(Inverter, "__call__", counted)
    assert isinstance(refusal(invert, "killed"), Killed)
    assert invert("killed").read_bytes() == whole
    assert calls == [16, 16, 16, 8]  # the first part was not inverted again
    written = invert("killed")
    assert "is complete. Nothing to invert." in capsys.readouterr().out
    assert written.read_bytes() == whole
    assert len(calls) == 4


def test_killed_between_the_last_part_and_the_file_loses_nothing(
    invert: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = invert("whole").read_bytes()
    with monkeypatch.context() as context:
        context.setattr(inversion, "save_latents", lambda *_: (_ for _ in ()).throw(Killed()))
        assert isinstance(refusal(invert, "killed"), Killed)
    with pytest.raises(InversionError, match=r"was interrupted\. Run the same command again"):
        load_latents(tmp_path / "killed" / "private" / "latents.pt")
    monkeypatch.setattr(Inverter, "__call__", lambda *_: pytest.fail("inverted again"))
    assert invert("killed").read_bytes() == whole


def test_other_options_and_networks_are_refused(invert: Any, encoder_models: Path) -> None:
    path = invert()
    assert "steps = 2, now it is 4. Give the old values, or another output_dir." in str(refusal(invert, steps=4))
    with pytest.raises(InversionError, match=r"latents of another generator .*Name the models_dir of its inversion"):
        load_latents(path, "1" * 64)
    edit_info(encoder_models / "encoder.pt", training={"generator_sha256": "1" * 64})
    error = refusal(invert)
    assert isinstance(error, WeightsError)
    assert "encoder was trained for another generator" in str(error)
    (encoder_models / "encoder.json").unlink()
    assert "does not exist" in str(refusal(invert))


def test_damaged_or_missing_files_are_named(invert: Any, tmp_path: Path) -> None:
    with pytest.raises(InversionError, match=r"does not exist\. Invert the images with configs/invert.json"):
        load_latents(tmp_path / "none" / "latents.pt")
    save_tensors(tmp_path / "other.pt", {"w": torch.zeros(1)})
    with pytest.raises(InversionError, match="no file of latents of format 1"):
        load_latents(tmp_path / "other.pt")
    save_tensors(tmp_path / "part.pt", {"format": 1, "w": torch.zeros(1)})
    with pytest.raises(DamagedError, match="is damaged"):
        load_latents(tmp_path / "part.pt")


def test_images_of_another_place_are_inverted_without_a_role(
    invert: Any, elsewhere: Path, encoder_models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latents = load_latents(invert(dataset_dir=str(elsewhere)))
    assert len(latents.w) == 24
    assert "no image counts as seen" in capsys.readouterr().out
    assert latents.split_sha256 != load_weights(encoder_models / "generator.pt")[1]["split_sha256"]


def test_images_of_another_place_do_not_need_the_split_file_of_the_training(
    invert: Any, elsewhere: Path, tiny_dataset: Path, encoder_models: Path
) -> None:
    assert (encoder_models.parent / "private" / "splits.json").exists()
    assert len(load_latents(invert("here", dataset_dir=str(elsewhere))).w) == 24
    assert not (encoder_models.parent / "private" / "latents.pt").exists()


def test_other_kinds_of_image_are_refused_with_the_cure(
    invert: Any, encoder_models: Path, tmp_path: Path, tiny_dataset: Path
) -> None:
    error = refusal(invert, modality="fundus")
    assert isinstance(error, InversionError)
    assert "makes images of xray, not of fundus. Name models of fundus" in str(error)

    folder = tmp_path / "coloured"
    for label in ("normal", "tuberculosis"):
        (folder / label).mkdir(parents=True)
        for index in range(6):
            pixels = np.random.default_rng(index).integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{index}.png")
    error = refusal(invert, dataset_dir=str(folder))
    assert isinstance(error, DataError)
    assert "is in colour" in str(error)

    empty = tmp_path / "empty"
    empty.mkdir()
    assert isinstance(refusal(invert, dataset_dir=str(empty)), DataError)

    edit_info(encoder_models / "generator.pt", preprocessing="retina")
    edit_info(encoder_models / "encoder.pt", preprocessing="retina")
    assert "preprocessing of the images is" in str(refusal(invert))


def test_images_of_other_classes_are_refused(invert: Any, tmp_path: Path) -> None:
    folder = tmp_path / "classes"
    folder.mkdir()
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["image", "label", "label_name"])
        for index in range(12):
            pixels = np.random.default_rng(index).integers(0, 255, (40, 40), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
            rows.writerow([f"{index}.png", index % 2, ("healthy", "pneumonia")[index % 2]])
    error = refusal(invert, dataset_dir=str(folder))
    assert isinstance(error, InversionError | DataError)
    assert "healthy" in str(error)
    shutil.rmtree(folder)
