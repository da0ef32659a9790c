# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""`evaluate` from end to end, as the command line runs it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import mlflow
import monai.bundle
import pytest
import torch
from PIL import Image

from bundle.auditing.reference import Reference
from bundle.data import DataError, ImageData
from bundle.evaluation.arms import ARMS, LONG_ARMS
from bundle.evaluation.pools import image_quotas
from bundle.evaluation.report import write_evaluation
from bundle.evaluation.setting import evaluation_images
from bundle.networks.latent_guides import LATENT_GUIDES
from bundle.networks.stylegan2 import Generator
from bundle.networks.weights import load_weights, save_weights
from bundle.options import OptionError
from bundle.steps import Step
from bundle.tracking import tracking_uri
from scripts.tools import select_settings
from tests.conftest import ROOT, cause
from tests.hospital import SURNAME, Networks, keep_reference

OPTIONS: dict[str, Any] = {
    "n_images": 40,
    "n_points": 4,
    "seeds": [0, 1],
    "n_shadows": 4,
    "max_epochs": 1,
    "long_points": 5,
    "long_pairs": 2,
    "published_pairs": 1,
    "walk_settings#steps": 3,
    "published_settings#steps": 3,
}


# Modules that draw patients anew.
DRAWN = (
    "auditing.assessment",
    "auditing.distances",
    "auditing.placebo",
    "auditing.thresholds",
    "evaluation.estimates",
    "evaluation.membership",
    "evaluation.setting",
)


def do_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few draws."""
    for module in DRAWN:
        monkeypatch.setattr(f"bundle.{module}.DRAWS", 40)
    for module in ("auditing.assessment", "auditing.placebo", "evaluation.distinct", "evaluation.estimates"):
        monkeypatch.setattr(f"bundle.{module}.HALVES", 4)
    monkeypatch.setattr("bundle.evaluation.distinct.DRAWN", 16)


@pytest.fixture(autouse=True)
def little_work(monkeypatch: pytest.MonkeyPatch, kept_reference: None) -> None:
    do_little(monkeypatch)


@pytest.fixture(scope="module")
def bundle_root(
    toy_models: Path,
    hospital_data: ImageData,
    elsewhere: Path,
    networks: Networks,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A bundle whose networks belong to the hospital, beside images of another one."""
    root = tmp_path_factory.mktemp("bundle")
    shutil.copytree(elsewhere, root / "elsewhere")
    (root / "configs").mkdir()
    for name in ("metadata", "evaluate", "evaluate_quick", "train_audit"):
        shutil.copyfile(ROOT / "configs" / f"{name}.json", root / "configs" / f"{name}.json")
    shutil.copyfile(ROOT / "configs" / "logging.conf", root / "configs" / "logging.conf")
    folder = root / "models" / "xray"
    for path in sorted(toy_models.glob("*.pt")):
        network, info = load_weights(path)
        save_weights(network, folder / path.name, {**info, "split_sha256": hospital_data.split_sha256})
    for name, network in networks[0].items():
        save_weights(network, folder / f"{name}.pt", networks[1][name])
    let_pass(folder)
    # What the students were made from has new files, with the old tensors.
    for name, (teacher, _) in LATENT_GUIDES.items():
        network, info = load_weights(folder / f"{name}.pt")
        hashes = {
            f"{key}_sha256": load_weights(folder / f"{of}.pt")[1]["sha256"]
            for key, of in (("generator", "generator"), ("teacher", teacher))
        }
        save_weights(network, folder / f"{name}.pt", {**info, "training": {**info["training"], **hashes}})
    return root


def let_pass(folder: Path) -> None:
    """Teaches the gate the classes of images between samples as well, so that arms with a gate can be filled."""
    generator, gate = load_weights(folder / "generator.pt")[0], load_weights(folder / "gate_class.pt")
    assert isinstance(generator, Generator)
    network = gate[0].requires_grad_(True)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    label = torch.arange(512) % 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with torch.no_grad():
            ends = [generator.mapping(torch.randn(512, generator.z_dim), label) for _ in range(2)]
            w = torch.lerp(ends[0], ends[1], torch.rand(512, 1))
            images = torch.cat([generator.synthesis(part) for part in w.split(16)])
        for _ in range(60):
            batch = torch.randint(512, (128,))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images[batch]), label[batch]).backward()
            optimizer.step()
    save_weights(network, folder / "gate_class.pt", gate[1])


def run(
    bundle_root: Path, dataset_dir: Path, output_dir: Path, squeezenet_file: Path, **options: Any
) -> dict[str, Any]:
    """Runs the command and returns content of results.json."""
    monai.bundle.run(
        run_id="evaluate",
        config_file=str(bundle_root / "configs" / "evaluate.json"),
        bundle_root=str(bundle_root),
        dataset_dir=str(dataset_dir),
        external_dir=str(bundle_root / "elsewhere"),
        output_dir=str(output_dir),
        squeezenet_file=str(squeezenet_file),
        device="cpu",
        **{**OPTIONS, **options},
    )
    results: dict[str, Any] = json.loads((output_dir / "results.json").read_text(encoding="utf-8"))
    return results


@pytest.fixture(scope="module")
def evaluated(
    bundle_root: Path,
    hospital: Path,
    squeezenet_file: Path,
    common_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, Any]]:
    """The folder of a whole evaluation, and content of its results.json."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        do_little(monkeypatch)
        keep_reference(monkeypatch, common_folder)
        folder = tmp_path_factory.mktemp("evaluated")
        return folder, run(bundle_root, hospital, folder, squeezenet_file)


def test_every_arm_has_every_measure_of_both_seeds(evaluated: tuple[Path, dict[str, Any]]) -> None:
    folder, results = evaluated
    assert list(results["arms"]) == sorted([*ARMS, *LONG_ARMS])
    for arm, kind in ARMS.items():
        cells = results["arms"][arm]
        for key in ("accuracy", "external_auc", "statistics_accuracy", "label_accuracy", "mia_accuracy", "lira_auc"):
            assert len(cells[key]["seeds"]) == 2
            assert cells[key]["low"] <= cells[key]["value"] <= cells[key]["high"]
        for key in (
            "copy_rate",
            "copy_rate_placebo",
            "mml_specific",
            "mml",
            "kid_all",
            "frechet_all",
            "kid",
            "privacy_loss",
            "variety",
            "mislabelled",
            "distinct",
            "cpu_seconds",
        ):
            assert ("seeds" in cells[key]) if kind.pool else (key not in cells)
    assert results["arms"]["real"]["label_accuracy"]["seeds"] == results["arms"]["real"]["accuracy"]["seeds"]
    assert "less than one image" in results["arms"]["real"]["lira_tpr"]["not_estimable"]
    for arm in LONG_ARMS:
        assert results["arms"][arm]["smoothness"]["n"] == (2 if arm.startswith("common") else 4)
    assert results["curves"]["long_walks"]["paths"] == 8
    assert [len(results["curves"]["long_lines"][key]) for key in ("low", "median", "high")] == [5, 5, 5]
    compared = {(entry["first"], entry["second"]): entry for entry in results["comparisons"]}
    assert "ratio" in compared["plan", "linear"]
    found = compared["plan", "linear"]["difference"]["accuracy"]
    both = [results["arms"][arm]["accuracy"]["seeds"] for arm in ("plan", "linear")]
    assert found["seeds"] == pytest.approx([a - b for a, b in zip(*both, strict=True)], abs=1e-3)
    assert results["arms"]["linear_one_gate"]["distinct"]["value"] <= 16
    assert results["cost_ratios"]["random_gate"]["value"] == 1.0
    assert results["cost_ratios"].keys() == {arm for arm, kind in ARMS.items() if kind.pool}
    assert results["source_pairs"] == []  # the hospital names no sources
    assert results["strangers"]["training"]["copy_rate"]["value"] > results["strangers"]["test"]["copy_rate"]["value"]
    for name in ("paths.png", "arms.png"):
        assert Image.open(folder / name).size[0] > 300


def test_report_is_one_file_of_aggregates(
    evaluated: tuple[Path, dict[str, Any]], hospital: Path, hospital_data: ImageData
) -> None:
    folder = evaluated[0]
    report = (folder / "report.html").read_text(encoding="utf-8")
    tables = (folder / "tables.md").read_text(encoding="utf-8")
    for text in (report, tables, (folder / "results.json").read_text(encoding="utf-8")):
        assert SURNAME not in text
        assert "MRN-" not in text
        assert str(hospital) not in text
        assert str(folder) not in text
        assert not any(digest[:16] in text for digest in hospital_data.digests(("train", "val", "test")))
    assert report.count("<svg") == 2
    assert "not estimable, because" in report
    assert not re.search(r'(src|href)="http', report)
    assert "; external: 24 of 24 patients." in tables
    assert "| Acc, external images |" in tables
    assert "Acc, external images" in report
    assert "## Accuracy within pairs of sources" not in tables
    assert "Accuracy within pairs" not in report
    metadata = json.loads((ROOT / "metadata.json").read_text(encoding="utf-8"))
    assert f"- Version of the bundle: {metadata['version']}." in tables
    assert "- Seeds: 0, 1." in tables
    assert all(f"{name} `{digest[:12]}`" in tables for name, digest in evaluated[1]["networks"].items())
    sections = [line for line in tables.splitlines() if not line.startswith(("|", "- "))]
    assert sections[0] == "# Evaluation: xray, 32 px"
    for heading, _, sentence in zip(sections, sections[1:], sections[2:], strict=False):
        assert not heading.startswith("## ") or sentence.endswith(".")
    assert "| PLAN + gate less Real |" in tables
    assert "by Real |" not in tables  # nothing is measured on both that has a ratio
    assert "<br>by Real" not in report
    for kind in ARMS.values():
        assert f"| {kind.title} |" in tables
        assert f"<td>{kind.title}</td>" in report
    assert {path.name for path in folder.iterdir()} == {
        "report.html", "results.json", "tables.md", "paths.png", "arms.png", "private",
    }  # fmt: skip


def test_pairs_of_sources_have_a_section(evaluated: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    cells = {"accuracy": {"value": 0.7, "low": 0.6, "high": 0.8, "seeds": [0.7], "n": 40}}
    pair = {
        "classes": ["well", "ill"],
        "sources": ["<b>", "x|y"],
        "images": [20, 20],
        "arms": dict.fromkeys(ARMS, cells),
    }
    write_evaluation(tmp_path, {**evaluated[1], "source_pairs": [pair]})
    tables, report = ((tmp_path / name).read_text(encoding="utf-8") for name in ("tables.md", "report.html"))
    assert "## Accuracy within pairs of sources" in tables
    assert "| well of &lt;b&gt; (20) / ill of x\\|y (20) | Acc | 70.0 % [60.0, 80.0] |" in tables
    assert "<td>well of &lt;b&gt; (20) / ill of x|y (20)</td>" in report


def test_recorded_with_a_child_for_each_arm_and_seed(evaluated: tuple[Path, dict[str, Any]]) -> None:
    folder, results = evaluated
    client = mlflow.MlflowClient(tracking_uri(folder))
    experiment = client.get_experiment_by_name("evaluate")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    children = {run.info.run_name: run for run in runs if "mlflow.parentRunId" in run.data.tags}
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    assert len(children) == 2 * len(results["arms"])
    child = children["plan_gate, seed 1"]
    assert child.data.params == {"arm": "plan_gate", "seed": "1"}
    assert child.data.metrics["accuracy"] == pytest.approx(
        results["arms"]["plan_gate"]["accuracy"]["seeds"][1], abs=1e-4
    )


class Killed(Exception):
    pass


def without_times(results: dict[str, Any]) -> dict[str, Any]:
    """The results without what depends on the speed of the machine."""
    arms = {
        arm: {key: cell for key, cell in cells.items() if key != "cpu_seconds"}
        for arm, cells in results["arms"].items()
    }
    return {**results, "arms": arms, "cost_ratios": list(results["cost_ratios"])}


def test_killed_run_goes_on_and_says_the_same(
    evaluated: tuple[Path, dict[str, Any]],
    bundle_root: Path,
    hospital: Path,
    squeezenet_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = Step.run
    computed: list[Path] = []

    def note(self: Step) -> None:
        if self.name == killer:
            raise Killed
        if self.path is not None and not self.path.exists():
            computed.append(self.path.relative_to(tmp_path))
        original(self)

    monkeypatch.setattr("bundle.evaluation.setting.Reference", Reference)  # nothing is kept from other evaluations
    monkeypatch.setattr(Step, "run", note)
    killer = "figures_plan seed 0"
    with pytest.raises(RuntimeError) as error:
        run(bundle_root, hospital, tmp_path, squeezenet_file, seeds=[0])
    assert isinstance(cause(error.value), Killed)
    assert not (tmp_path / "results.json").exists()
    first, killer = set(computed), ""
    computed.clear()
    # Another process has meanwhile done the other seed; the last one finds everything.
    run(bundle_root, hospital, tmp_path, squeezenet_file, seeds=[1])
    assert not first & set(computed)
    again = run(bundle_root, hospital, tmp_path, squeezenet_file)
    assert not first & set(computed)
    assert len(computed) == len(set(computed))
    assert without_times(again) == without_times(evaluated[1])
    client = mlflow.MlflowClient(tracking_uri(tmp_path))
    experiment = client.get_experiment_by_name("evaluate")
    assert experiment is not None


def test_gate_that_lets_too_little_pass_leaves_its_arms_open(
    bundle_root: Path, hospital: Path, squeezenet_file: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    shutil.copytree(bundle_root / "models" / "xray", models)
    network, info = load_weights(models / "gate_class.pt")
    blind: Any = network
    torch.nn.init.zeros_(blind.head.weight)
    blind.head.bias.copy_(torch.tensor([1.0, 0.0]))  # sees class 0 everywhere
    save_weights(network, models / "gate_class.pt", info)
    results = run(
        bundle_root, hospital, tmp_path / "evaluated", squeezenet_file,
        models_dir=str(models), seeds=[0], published_pairs=0, n_images=20,
    )  # fmt: skip
    for arm in ("random_gate", "linear_gate", "plan_gate"):
        for key in ("accuracy", "copy_rate"):
            reason = results["arms"][arm][key]["not_estimable"]
            assert re.fullmatch(r"only 0 of \d+ images of tuberculosis pass the gate and are distinct, not \d+", reason)
    assert "value" in results["arms"]["plan"]["accuracy"]
    assert results["arms"]["plan"]["mislabelled"]["value"] == pytest.approx(0.5, abs=0.1)
    assert not any(arm.startswith("common") for arm in results["arms"])


def test_without_test_images_there_is_no_evaluation(hospital_data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    records = hospital_data.records
    monkeypatch.setattr(hospital_data, "records", lambda splits: [] if splits == "test" else records(splits))
    with pytest.raises(DataError, match="the dataset has no test images, and an evaluation"):
        evaluation_images(hospital_data)


def test_class_without_images_is_named(hospital_data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"of 1 images, none would show (normal|tuberculosis)"):
        image_quotas(hospital_data, 1)
    assert sum(image_quotas(hospital_data, None).values()) == len(hospital_data.records("train"))
    monkeypatch.setattr(hospital_data, "class_names", ("normal", "tuberculosis", "pneumonia"))
    with pytest.raises(DataError, match="no training image shows pneumonia"):
        image_quotas(hospital_data, None)


def test_impossible_options_are_refused_at_once(bundle_root: Path, tmp_path: Path, squeezenet_file: Path) -> None:
    with pytest.raises(RuntimeError) as error:
        run(bundle_root, tmp_path, tmp_path, squeezenet_file, seeds=[1, 1], n_shadows=5, long_points=2)
    problems = cause(error.value)
    assert isinstance(problems, OptionError)
    assert len(problems.problems) == 3
    assert any("--seeds must name at least one and none twice" in problem for problem in problems.problems)


def test_settings_are_chosen_without_the_test_images(
    bundle_root: Path,
    hospital: Path,
    squeezenet_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(bundle_root)
    few = "n_points=4,max_epochs=1,walk_settings#steps"
    arguments = ["--dataset_dir", str(hospital), "--squeezenet_file", str(squeezenet_file), "--n_images", "40"]
    arguments += ["--seeds", "7", "8", "--output_dir", str(tmp_path), "--candidates", f"{few}=2", f"{few}=3"]
    asked: set[str] = set()
    records = ImageData.records

    def watched(self: ImageData, splits: Any) -> Any:
        found = records(self, splits)
        if self._test == "val":
            asked.update(self._splits.split_of[record.name] for record in found)
        return found

    monkeypatch.setattr(ImageData, "records", watched)
    select_settings.main(arguments)
    assert {"train", "val"} <= asked and "test" not in asked
    found = json.loads((tmp_path / "selection.json").read_text(encoding="utf-8"))
    assert set(found["measured"]) == {f"{few}=2", f"{few}=3"} and found["seeds"] == [7, 8]
    assert found["chosen"] in found["measured"] and found["chosen"] not in found["dropped"]
    assert f"Chosen: {found['chosen']}" in capsys.readouterr().out
    assert "**chosen**" in (tmp_path / "tables.md").read_text(encoding="utf-8")
    for wrong, message in (
        ("walk_setting#steps=2", "no option 'walk_setting#steps'"),
        ("n_points=four", "JSON values"),
    ):
        with pytest.raises(SystemExit):
            select_settings.main([*arguments[:-2], wrong, "default"])
        assert message in capsys.readouterr().err
