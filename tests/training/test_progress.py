# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from pathlib import Path

import pytest

from bundle.training.checkpoint import TrainingCheckpoint
from bundle.training.progress import TrainingProgress
from tests.training.conftest import NewTrainer


def test_progress_counts_images_of_the_whole_run(
    new_trainer: NewTrainer, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = new_trainer(max_epochs=1)
    TrainingCheckpoint(path, {}, {"trainer": first}, 3).attach(first)
    first.run()
    second = new_trainer()
    TrainingProgress({"g_loss": ".2f", "p": ".0%"}, smoothed=["p"]).attach(second)
    TrainingCheckpoint(path, {}, {"trainer": second}, 3).attach(second)
    second.run()
    shown = capsys.readouterr().err
    assert "training the GAN:  50%" in shown
    assert "12.0/24.0" in shown
    assert re.search(r"image/s, g_loss=\d+\.\d\d, p=\d+%", shown)
