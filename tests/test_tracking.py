# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch import nn

from bundle.tracking import Tracking, tracking_uri

ROOT = Path(__file__).resolve().parents[1]


class Killed(Exception):
    pass


def train(folder: Path, epochs: int, kill_at: int | None = None, **parameters: object) -> None:
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    (folder / "samples" / "grid.png").write_bytes(b"png")
    network = nn.Linear(2, 1)
    decollate = epochs > 2

    def measure(engine: SupervisedTrainer) -> None:
        if engine.state.iteration == kill_at:
            raise Killed
        engine.state.metrics["kid_val"] = float(engine.state.epoch // 2)

    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=[{"image": torch.ones(3, 2), "label": torch.ones(3, 1)}] * 4,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=nn.MSELoss(),
        decollate=decollate,
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, measure)
    Tracking(
        tracking_uri(folder), "train_test", parameters=parameters, interval=2, artifacts=[folder / "samples"]
    ).attach(trainer)
    trainer.run()


def runs(uri: str) -> list[mlflow.entities.Run]:
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("train_test")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def test_a_killed_run_goes_on_under_its_record_and_ends_with_parameters_metrics_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "output"
    with pytest.raises(Killed):
        train(folder, 2, kill_at=3, seed=1, total_kimg=2)
    train(folder, 4, seed=1, total_kimg=4)

    uri = tracking_uri(folder)
    assert (folder / "private" / "mlruns.db").is_file()
    [run] = runs(uri)
    assert run.info.status == "FINISHED"
    assert {key: run.data.params[key] for key in ("seed", "total_kimg")} == {"seed": "1", "total_kimg": "2"}
    client = mlflow.MlflowClient(uri)
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")] == [2, *range(2, 17, 2)]
    history = client.get_metric_history(run.info.run_id, "kid_val")
    assert [(metric.step, metric.value) for metric in history] == [(4, 0), (8, 1), (16, 2)]
    assert [artifact.path for artifact in client.list_artifacts(run.info.run_id)] == ["grid.png"]
    assert (folder / "private" / "mlruns").is_dir()

    train(folder, 1, seed=2)
    assert len(runs(uri)) == 2


def test_several_runs_may_make_one_store_at_once(tmp_path: Path) -> None:
    uri = tracking_uri(tmp_path / "a folder")
    code = "import sys; from bundle.tracking import Tracking; Tracking(sys.argv[1], 'train_test')._set_experiment()"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, uri], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert runs(uri) == []


def test_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tracking_uri(tmp_path / "elsewhere")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere)
    train(tmp_path / "output", 1)
    assert len(runs(elsewhere)) == 1
    assert not (tmp_path / "output" / "private" / "mlruns.db").exists()


def test_training_goes_without_mlflow_and_says_that_nothing_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("bundle.tracking._has_mlflow", lambda: False)
    with caplog.at_level(logging.WARNING):
        train(tmp_path / "output", 1)
    assert "not recorded" in caplog.text
    assert not (tmp_path / "output" / "private" / "mlruns.db").exists()
