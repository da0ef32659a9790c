# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from bundle.evaluation import walkers
from bundle.evaluation.walk_costs import compared_walks, cost, shortened
from bundle.evaluation.walk_quality import difference, path_figure, quality_table, student_table
from bundle.evaluation.walkers import Clock, Judged, Walk, Walker
from bundle.gate.gate import GateDecision
from bundle.networks.embeddings import ContrastiveEmbedding
from bundle.networks.weights import save_weights
from bundle.walk import trajectories
from bundle.walk.objective import BalancedObjective
from scripts.tools import benchmark
from scripts.tools.benchmark import main, peak_memory


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Walks of three steps; nobody's memory is measured."""
    whole = benchmark.compared_walks

    def short_walks(objective: BalancedObjective) -> dict[str, Walk]:
        return {name: shortened(walk, 3) for name, walk in whole(objective).items()}

    monkeypatch.setattr(benchmark, "compared_walks", short_walks)
    monkeypatch.setattr(benchmark, "peak_memory", lambda arm, models_dir, n_points: 1234.5)
    monkeypatch.setattr(benchmark, "TRIALS", 2)
    monkeypatch.setattr(trajectories, "TRIAL_PAIRS", 2)


def judged(passed: list[list[int]], walking: Clock, judging: Clock) -> Judged:
    """Paths of one class, with what passed of them."""
    masks = [torch.tensor(mask, dtype=torch.bool) for mask in passed]
    verdicts = [GateDecision(mask, ~mask, *[torch.zeros_like(mask)] * 3) for mask in masks]
    return Judged([[0]], [[]], [[]], [verdicts], steps=[3] * len(masks), walking=walking, judging=judging)


def test_all_that_was_done_is_spread_over_what_is_released() -> None:
    walked = judged([[1, 0, 1], [0, 0, 1]], Clock(wall=6.0, cpu=9.0), Clock(wall=3.0, cpu=3.0))
    assert cost(walked) == (4.0, 3.0)
    assert all(value != value for value in cost(judged([[0]], Clock(1.0, 1.0), Clock(1.0, 1.0))))


def test_clock_counts_what_passes_within(monkeypatch: pytest.MonkeyPatch) -> None:
    wall, cpu = iter([1.0, 4.0, 10.0, 10.5]), iter([0.0, 5.0, 5.0, 6.0])
    monkeypatch.setattr(walkers.time, "perf_counter", lambda: next(wall))
    monkeypatch.setattr(walkers.time, "process_time", lambda: next(cpu))
    clock = Clock()
    for _ in range(2):
        with clock.running():
            pass
    assert (clock.wall, clock.cpu) == (3.5, 6.0)


def test_intervals_are_of_paths() -> None:
    values = torch.tensor([[0.0] * 50, [1.0] * 50])  # two paths, however many points
    found = path_figure(values, is_share=False)
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
    apart = difference(torch.tensor([[3.0, 1.0], [5.0, 3.0]]), torch.tensor([[1.0, 1.0], [2.0, 2.0]]))
    assert (apart.value, apart.low, apart.high) == (1.5, 1.0, 2.0)


def test_students_are_compared_with_the_guides_by_several_seeds() -> None:
    latent = {
        "accepted": torch.tensor([[1.0, 1.0], [0.0, 1.0]]),
        "passed": torch.tensor([[1.0, 0.0], [1.0, 1.0]]),
        "identity": torch.tensor([[0.1, 0.2], [0.3, 0.4]]),
        "promised": torch.tensor([[0.4, 0.3], [0.2, 0.1]]),
    }
    trials = [{"rank_correlation": value, "rank_correlation_class": 1.0} for value in (0.8, 0.9, 1.0)]
    told = student_table(latent, trials)
    assert told.startswith("Of 3 inner points that the students accept, 66.7 %")
    assert "promise an identity KL of 0.25 and the guide says 0.25 (rank correlation -1.00)" in told
    assert "0.900 +- 0.100 for the identity and 1.000 +- 0.000 for the class" in told


def test_differences_are_of_the_pairs_that_both_walked() -> None:
    def arm(pairs: list[int], values: list[float]) -> dict[str, Tensor]:
        return {"pair": torch.tensor(pairs), "identity": torch.tensor(values).unsqueeze(1)}

    measured = {"published": arm([0, 1], [1.0, 2.0]), "latent": arm([0, 2, 1, 3], [3.0, 100.0, 4.0, 100.0])}
    rows = quality_table(measured, compared_walks(BalancedObjective()))
    assert rows[0] == ("walk", "identity KL, real phi_id")
    assert rows[-1] == ("latent guides less published algorithm, 2 common pairs", "2 [2, 2]")


def test_arms_walk_between_the_same_ends_and_are_compared(
    short: None, toy_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "benchmark.json"
    arguments = f"--models_dir {toy_models} --output_file {file} --pairs 3 --baseline_pairs 1 --n_points 4"
    main(arguments.split())
    printed = capsys.readouterr().out
    for walk in compared_walks(BalancedObjective()).values():
        assert f"| {walk.title} |" in printed
    content = json.loads(file.read_text(encoding="utf-8"))
    columns, *rows = content["cost"]
    assert [row[columns.index("paths")] for row in rows] == ["6", "2", "6", "6"]
    assert all(float(row[columns.index("CPU s")]) > 0.0 for row in rows)
    assert {row[columns.index("peak MiB")] for row in rows} == {"1234"}
    latent = dict(zip(columns, rows[3], strict=True))
    spread = float(latent["with distillation, over 100"]) - float(latent["CPU s"])
    assert spread == pytest.approx(9 / 100, rel=0.1)  # 9 CPU seconds, by the JSON
    assert "2 common pairs" in content["quality"][-1][0]
    assert "inner points that the students accept" in content["students"]
    assert "standard deviation, 2 seeds" in content["students"]
    with Image.open(file.with_suffix(".png")) as picture:
        assert picture.width > 500


def test_real_images_add_distances_and_copies(
    short: None, tiny_models: Path, tiny_dataset: Path, squeezenet_file: Path, tmp_path: Path
) -> None:
    save_weights(ContrastiveEmbedding(1, side=32, widths=(4, 8), dimension=8), tiny_models / "audit_embedding.pt", {})
    file = tmp_path / "benchmark.json"
    arguments = f"--models_dir {tiny_models} --output_file {file} --pairs 1 --baseline_pairs 1 --n_points 4"
    main([*arguments.split(), "--dataset_dir", str(tiny_dataset), "--squeezenet_file", str(squeezenet_file)])
    columns, *rows = json.loads(file.read_text(encoding="utf-8"))["quality"]
    nearest, copies = (columns.index(name) for name in ("LPIPS to the nearest real image", "copies, by the audit"))
    for row in rows[:4]:
        assert float(row[nearest].split(" ")[0]) > 0.0
        assert 0.0 <= float(row[copies].split(" ")[0]) <= 100.0


def test_memory_is_that_of_a_process_of_its_own(toy_models: Path) -> None:
    held = torch.ones(100 * 2**20, dtype=torch.uint8)  # the measured process begins without it
    assert 200.0 < peak_memory("latent", str(toy_models), 4) < 4000.0
    assert int(held.sum()) == 100 * 2**20


@pytest.mark.parametrize(("option", "least"), [("pairs", 1), ("baseline_pairs", 1), ("n_points", 3)])
def test_impossible_options_are_refused(option: str, least: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([f"--{option}", str(least - 1)])
    assert f"--{option} must be at least {least}" in capsys.readouterr().err


def test_mistakes_in_options_do_not_wait_for_the_walks(
    tiny_models: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Walker, "walk", lambda *_: pytest.fail("walks before it looks"))
    options = ["--models_dir", str(tiny_models), "--output_file", str(tmp_path / "benchmark.json"), "--dataset_dir"]
    for mistaken, told in (
        (["nowhere"], "nowhere does not exist"),
        ([str(tiny_dataset), "--squeezenet_file", "nowhere.pth"], "squeezenet_file nowhere.pth does not exist"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*options, *mistaken])
        assert stopped.value.code == 1
        assert told in capsys.readouterr().err


def test_models_without_students_are_refused(
    toy_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models_dir = Path(shutil.copytree(toy_models, tmp_path / "models"))
    (models_dir / "latent_class.pt").unlink()
    with pytest.raises(SystemExit):
        main(["--models_dir", str(models_dir)])
    assert "latent_class.pt does not exist. Train it" in capsys.readouterr().err
