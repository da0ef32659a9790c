# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""`train_latent_guides` from end to end, as the command line runs it."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bundle.latent.prior import LatentPrior
from bundle.networks.classifiers import Guide
from bundle.networks.latent_guides import LATENT_GUIDES, LatentGuide
from bundle.networks.model_set import GENERATION_NETWORKS, ModelSet, load_models
from bundle.networks.stylegan2 import Generator
from bundle.networks.weights import load_weights
from bundle.training.latent_guide_trainer import LatentGuideTrainer
from bundle.walk import distillation
from bundle.walk import trajectories as trajectories_
from bundle.walk.guides import ImageGuides, LatentGuides
from bundle.walk.inferer import PlanWalkInferer
from bundle.walk.objective import BalancedObjective, identity_divergence
from bundle.walk.path import WalkSettings
from bundle.walk.trajectories import NewWalk, agreement, trajectories, visited_latents
from tests.conftest import cause, train_on_models
from tests.training.conftest import Killed


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few walks, a few latents and small students."""
    monkeypatch.setattr(trajectories_, "PAIRS", 2)
    monkeypatch.setattr(trajectories_, "POINTS", 4)
    monkeypatch.setattr(trajectories_, "TRIAL_PAIRS", 2)
    monkeypatch.setattr(distillation, "HELD_OUT_LATENTS", 32)
    for name, (teacher, _) in LATENT_GUIDES.items():
        monkeypatch.setitem(LATENT_GUIDES, name, (teacher, 16))


@pytest.fixture
def models_dir(toy_models: Path, tmp_path: Path) -> Path:
    """The toy models, without students."""
    return Path(shutil.copytree(toy_models, tmp_path / "models", ignore=shutil.ignore_patterns("latent_*")))


@pytest.fixture(scope="module")
def models(toy_models: Path) -> ModelSet:
    return load_models(toy_models, names=(*GENERATION_NETWORKS, *LATENT_GUIDES))


@pytest.fixture(scope="module")
def new_walk(models: ModelSet) -> NewWalk:
    prior = LatentPrior(models.generator)
    return partial(PlanWalkInferer, prior=prior, objective=BalancedObjective(), settings=WalkSettings())


def train(models_dir: Path, output_dir: Path, **options: Any) -> None:
    few = {"n_latents": 64, "n_visited": 8, "rounds": 1, "max_epochs": 2, "batch_size": 16}
    train_on_models("train_latent_guides", models_dir, output_dir, **{**few, **options})


def test_students_are_written_and_walked_on(small: None, models_dir: Path, tmp_path: Path) -> None:
    train(models_dir, tmp_path)
    trained = load_models(models_dir, names=(*GENERATION_NETWORKS, *LATENT_GUIDES))
    for name, (teacher, _) in LATENT_GUIDES.items():
        student, guide = trained.networks[name], trained.networks[teacher]
        assert isinstance(student, LatentGuide)
        if isinstance(guide, Guide):
            torch.testing.assert_close(student.head.weight, guide.head.weight)
        assert isinstance(guide, Guide) or name == "latent_realism"
        info = trained.infos[name]
        # Where walks begin, and two places of each of 4 walked points; a sixteenth of these for the judge of realism.
        assert info["training"]["n_latents"] == (4 + 1 if name == "latent_realism" else 64 + 8)
        assert info["training"]["round"] == 1
        assert info["training"]["objective"]["lambda_class"] == 5.0
        assert info["training"]["walk"]["steps"] == 100
    info = trained.infos["latent_identity"]
    assert -1.0 <= info["scores"]["beginnings"]["rank_correlation"] <= 1.0
    assert info["scores"]["walks"]["identity_divergence"] > 0.0
    assert info["cpu_seconds"] >= 1
    assert 0.0 <= trained.infos["latent_class"]["scores"]["beginnings"]["agreement"] <= 1.0
    assert -1.0 <= trained.infos["latent_realism"]["scores"]["beginnings"]["rank_correlation"] <= 1.0
    assert not (tmp_path / "latents").exists()
    assert str(tmp_path) not in json.dumps(info)


def test_one_student_is_trained_alone_and_the_others_are_kept(
    small: None, models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(models_dir, tmp_path)
    before = {name: (models_dir / f"{name}.pt").read_bytes() for name in LATENT_GUIDES}
    drawn: list[int] = []
    draw = distillation.draw_latents

    def count(generator: Generator, numbers: range, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        drawn.append(len(numbers))
        return draw(generator, numbers, seed)

    monkeypatch.setattr(distillation, "draw_latents", count)
    train(models_dir, tmp_path / "alone", students="latent_realism", n_latents=128)
    alone = tmp_path / "alone" / "models"
    assert sorted(path.name for path in alone.iterdir()) == ["latent_realism.json", "latent_realism.pt"]
    assert (alone / "latent_realism.pt").read_bytes() != before["latent_realism"]
    assert {name: (models_dir / f"{name}.pt").read_bytes() for name in LATENT_GUIDES} == before
    # A sixteenth of the latents is all that its teacher is asked about, so no more are drawn.
    assert drawn == [32, 8]
    assert load_weights(alone / "latent_realism.pt")[1]["training"]["n_latents"] == 8 + 8
    train(models_dir, tmp_path / "alone", students="latent_realism", n_latents=128)
    assert drawn == [32, 8]


def test_finished_training_asks_nothing_again(
    small: None, models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(models_dir, tmp_path)
    monkeypatch.setattr(distillation, "ask_guides", lambda *_: pytest.fail("the guides were asked again"))
    train(models_dir, tmp_path)
    assert "Nothing to train" in capsys.readouterr().out
    with pytest.raises(RuntimeError) as caught:
        train(models_dir, tmp_path, lambda_class=2.0)
    assert "was trained with objective = {" in str(cause(caught.value))
    with pytest.raises(RuntimeError) as caught:
        train(models_dir, tmp_path, n_visited=9)
    assert "was trained with n_latents = 72, now it is 80" in str(cause(caught.value))


def test_killed_run_goes_on_to_the_same_students(
    small: None, models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(models_dir, tmp_path / "whole")
    saved: list[str] = []
    save = LatentGuideTrainer.save

    def save_and_die(self: LatentGuideTrainer) -> dict[str, Any]:
        scores = save(self)
        saved.append(self.name)
        if len(saved) == 4:  # all of the first round, and the first of the second
            raise Killed
        return scores

    with monkeypatch.context() as patch:
        patch.setattr(LatentGuideTrainer, "save", save_and_die)
        with pytest.raises(RuntimeError) as caught:
            train(models_dir, tmp_path / "killed")
    assert isinstance(cause(caught.value), Killed)
    asked = tmp_path / "killed" / "latents" / "beginnings_latent_identity_latent_class" / "00000.pt"
    before = asked.stat().st_mtime_ns
    resumed: list[int] = []
    monkeypatch.setattr(shutil, "rmtree", lambda folder, **options: resumed.append(asked.stat().st_mtime_ns))
    train(models_dir, tmp_path / "killed")
    assert before in resumed
    for name in LATENT_GUIDES:
        whole, again = (
            load_weights(tmp_path / run / "models" / f"{name}.pt")[0].state_dict() for run in ("whole", "killed")
        )
        assert all(torch.equal(value, again[key]) for key, value in whole.items())


def test_trajectories_begin_on_the_line_and_end_on_the_path(models: ModelSet, new_walk: NewWalk) -> None:
    students = models.networks["latent_identity"], models.networks["latent_class"], models.networks["latent_realism"]
    guides = LatentGuides(*students, amp=False)
    steps = trajectories(new_walk, guides, models.generator, range(3), 1, seed=2, n_points=5)
    assert 21 <= len(steps) <= WalkSettings().steps + 1  # a walk may settle, after 20 steps at the soonest
    assert steps.shape[1:] == (3, 3, 8)
    torch.testing.assert_close(steps[0, :, 0] - steps[0, :, 1], steps[0, :, 1] - steps[0, :, 2], rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        first, last = (identity_divergence(guides(points.flatten(0, 1))[0]).mean() for points in (steps[0], steps[-1]))
    assert float(last) < float(first)
    again = trajectories(new_walk, guides, models.generator, range(1, 3), 1, seed=2, n_points=5)
    # Fewer paths may settle sooner; until the soonest they go the same way.
    torch.testing.assert_close(again[:21], steps[:21, 1:], rtol=1e-3, atol=1e-3)


def test_visited_latents_are_ends_of_walks_and_places_on_the_way(
    small: None, models: ModelSet, new_walk: NewWalk
) -> None:
    students = models.networks["latent_identity"], models.networks["latent_class"], models.networks["latent_realism"]
    guides = LatentGuides(*students, amp=False)
    w = visited_latents(new_walk, guides, models.generator, 16, seed=6)
    assert w.shape == (16, 8)
    for label, part in enumerate(w.split(8)):
        steps = trajectories(new_walk, guides, models.generator, range(2), label, seed=6, n_points=4)
        torch.testing.assert_close(part[:4], steps[-1].flatten(0, 1))
        distance = (part[4:].unsqueeze(0) - steps.flatten(1, 2)).norm(dim=2)
        assert float(distance.amin(dim=0).max()) < 1e-5
    assert torch.equal(visited_latents(new_walk, guides, models.generator, 16, seed=6), w)


def test_guides_agree_with_themselves(small: None, models: ModelSet, new_walk: NewWalk) -> None:
    networks = models.networks
    itself = ImageGuides(models.generator, networks["identity_guide"], networks["class_guide"], amp=False)
    figures = agreement(new_walk, itself, models, seed=1)
    assert figures["rank_correlation"] == pytest.approx(1.0, abs=0.01)
    assert figures["rank_correlation_class"] == pytest.approx(1.0, abs=0.01)
    assert figures["identity_divergence"] == pytest.approx(figures["identity_divergence_promised"], rel=0.05)


def test_walks_of_one_class_may_settle_sooner(
    small: None, models: ModelSet, new_walk: NewWalk, monkeypatch: pytest.MonkeyPatch
) -> None:
    guides = ImageGuides(models.generator, models.networks["identity_guide"], models.networks["class_guide"])
    whole = trajectories_.trajectories

    def shorter(walk: NewWalk, guides: ImageGuides, generator: Generator, pairs: range, label: int, *rest: Any) -> Any:
        steps = whole(walk, guides, generator, pairs, label, *rest)
        return steps[: len(steps) - 8 * label]

    monkeypatch.setattr(trajectories_, "trajectories", shorter)
    assert agreement(new_walk, guides, models, seed=3)["rank_correlation"] > 0.9
