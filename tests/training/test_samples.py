# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from bundle.networks.sampling import fixed_latents
from bundle.training.samples import SampleGrid
from tests.training.conftest import NewTrainer


def test_fixed_latents() -> None:
    z, label = fixed_latents(5, 3, 2, seed=1)
    assert z.shape == (5, 3)
    assert label.tolist() == [0, 1, 0, 1, 0]
    assert torch.equal(fixed_latents(5, 3, 2, seed=1)[0], z)
    assert not torch.equal(fixed_latents(5, 3, 2, seed=2)[0], z)


def test_sample_grids_show_the_averaged_generator(new_trainer: NewTrainer, tmp_path: Path) -> None:
    trainer = new_trainer()
    grid = SampleGrid(tmp_path / "samples", 1000.0, ["a", "b"], n=3)
    grid.attach(trainer)
    trainer.run()
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["kimg_000000.png"]
    with Image.open(tmp_path / "samples" / "kimg_000000.png") as picture:
        assert picture.mode == "L"
        assert picture.width >= 3 * 32
        assert picture.height >= 2 * 32
        before = picture.tobytes()
    for parameter in trainer.generator.parameters():
        torch.nn.init.zeros_(parameter)
    grid.draw(trainer)
    with Image.open(tmp_path / "samples" / "kimg_000000.png") as picture:
        assert picture.tobytes() == before
    assert trainer.state.last_sample_grid == str(tmp_path / "samples" / "kimg_000000.png")
