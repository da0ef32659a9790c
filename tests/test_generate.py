# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""`generate` from end to end, on untrained networks and on the shipped ones."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch
from filelock import FileLock
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from PIL import Image

from bundle.cohort.judge import JudgePathd
from bundle.cohort.ledger import VERDICT, CohortError, WalkLedger
from bundle.cohort.progress import GenerationProgress
from bundle.cohort.review_page import PAGE, has_page
from bundle.cohort.settings import default_guides
from bundle.data import get_modality
from bundle.files import content_digest, write_json
from bundle.lock import InUseError
from bundle.networks.latent_guides import LATENT_GUIDES
from bundle.networks.model_set import GENERATION_NETWORKS
from bundle.networks.weights import WeightsError, write_info
from bundle.options import OptionError
from tests.conftest import ROOT, cause

PUBLISHED = [str(ROOT / "configs" / f"{name}.json") for name in ("plan", "published")]


def generate(models_dir: Path, output_dir: Path, **options: Any) -> None:
    """Runs the configuration as the command line does."""
    monai.bundle.run(
        "generate",
        bundle_root=str(ROOT),
        models_dir=str(models_dir),
        output_dir=str(output_dir),
        device="cpu",
        **{"config_file": str(ROOT / "configs" / "plan.json"), "n_images": 12, "n_points": 5, **options},
    )


def digest(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def cohort(toy_models: Path, tmp_path_factory: pytest.TempPathFactory, squeezenet_file: Path) -> Path:
    """A finished run's folder."""
    output_dir = tmp_path_factory.mktemp("run")
    generate(toy_models, output_dir, squeezenet_file=str(squeezenet_file))
    return output_dir


def test_cohort_holds_what_it_should(cohort: Path) -> None:
    folder = cohort / "cohort"
    with open(folder / "labels.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 12
    assert [row["label_name"] for row in rows].count("tuberculosis") == 6
    for row in rows:
        with Image.open(folder / row["image"]) as image:
            assert image.size == (32, 32)
            assert image.mode == "L"
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["files"] == {name: sha for name, sha in digest(folder).items() if name != "manifest.json"}
    assert {path.name for path in folder.iterdir()} == {
        "images",
        "labels.csv",
        "manifest.json",
        "datasheet.md",
        "contact_sheet.png",
    }
    assert {path.name for path in cohort.iterdir()} == {"cohort", "private", PAGE}
    assert has_page(manifest, cohort / PAGE)


def test_verification_writes_the_page_that_an_earlier_version_did_not_write(
    cohort: Path, toy_models: Path, squeezenet_file: Path
) -> None:
    page = (cohort / PAGE).read_bytes()
    (cohort / PAGE).unlink()
    before = digest(cohort / "cohort")
    generate(toy_models, cohort, squeezenet_file=str(squeezenet_file))
    assert (cohort / PAGE).read_bytes() == page
    assert digest(cohort / "cohort") == before


@pytest.mark.parametrize("modality", ["xray", "fundus"])
def test_shipped_networks_write_a_cohort(modality: str, tmp_path: Path) -> None:
    models = ROOT / "models" / modality
    missing = [name for name in (*GENERATION_NETWORKS, *LATENT_GUIDES) if not (models / f"{name}.pt").is_file()]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} in {models}, which this checkout does not have")
    overlay = [] if modality == "xray" else [str(ROOT / "configs" / f"{modality}.json")]
    few: dict[str, Any] = {"n_images": 10, "n_points": 4, "walk_settings#steps": 20}
    monai.bundle.run(
        "generate",
        config_file=[str(ROOT / "configs" / "plan.json"), *overlay],
        bundle_root=str(ROOT),
        output_dir=str(tmp_path),
        device="cpu",
        **few,
    )
    with open(tmp_path / "cohort" / "labels.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    preset, side = get_modality(modality), json.loads((models / "generator.json").read_text())["resolution"]
    assert [row["label_name"] for row in rows] == sorted(
        [*preset.class_names] * (10 // len(preset.class_names)), key=preset.class_names.index
    )
    for row in rows:
        with Image.open(tmp_path / "cohort" / row["image"]) as image:
            assert (image.size, image.mode) == ((side, side), {1: "L", 3: "RGB"}[preset.channels])


def test_cohort_names_no_folder_of_this_machine(cohort: Path, toy_models: Path) -> None:
    for path in (cohort / "cohort").rglob("*"):
        if path.suffix in (".json", ".csv", ".md"):
            text = path.read_text(encoding="utf-8")
            for secret in (str(cohort), str(toy_models), str(ROOT)):
                assert secret not in text


def test_private_pictures_are_beside_the_cohort(cohort: Path) -> None:
    for name in ("paths.png", "losses.png"):
        with Image.open(cohort / "private" / name) as picture:
            assert picture.width > 100


def test_walked_paths_are_compared_with_straight_ones(cohort: Path) -> None:
    comparison = json.loads((cohort / "private" / "paths.json").read_text(encoding="utf-8"))
    assert comparison["PLAN"]["identity_divergence"] < comparison["linear"]["identity_divergence"]
    assert all(0.0 <= comparison["PLAN"][name] <= 1.0 for name in ("recognised", "mislabelled", "variety"))


def test_same_seed_same_bits_and_other_seed_other_images(cohort: Path, toy_models: Path, tmp_path: Path) -> None:
    generate(toy_models, tmp_path / "same")
    assert digest(tmp_path / "same" / "cohort") == digest(cohort / "cohort")
    generate(toy_models, tmp_path / "other", seed=1)
    images = [set(digest(folder / "cohort" / "images").values()) for folder in (cohort, tmp_path / "other")]
    assert not images[0] & images[1]


def test_images_do_not_depend_on_how_many_are_asked_for(cohort: Path, toy_models: Path, tmp_path: Path) -> None:
    generate(toy_models, tmp_path / "few", n_images=4)
    few, many = (digest(folder / "cohort" / "images") for folder in (tmp_path / "few", cohort))
    assert few.items() <= many.items()


def test_broken_off_run_goes_on_to_the_same_bits(
    cohort: Path, toy_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = []
    judge = JudgePathd.__call__

    def judge_two(self: JudgePathd, data: Any) -> dict[str, Any]:
        judged.append(data["index"])
        if len(judged) == 3:
            raise KeyboardInterrupt
        return judge(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(JudgePathd, "__call__", judge_two)
        with pytest.raises(KeyboardInterrupt):
            generate(toy_models, tmp_path)
    assert not (tmp_path / "cohort").exists()
    assert len(list((tmp_path / "private" / "walk").glob("pair_*.pt"))) == 2
    generate(toy_models, tmp_path)
    assert digest(tmp_path / "cohort") == digest(cohort / "cohort")


def test_complete_cohort_is_verified_and_left_alone(
    cohort: Path, toy_models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (cohort / "cohort").rglob("*")}
    generate(toy_models, cohort)
    assert "is complete" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (cohort / "cohort").rglob("*")}


def test_formats_are_added_to_a_complete_cohort_without_walking_again(
    cohort: Path, toy_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(toy_models, tmp_path / "at once", formats=["png", "dicom", "nifti"])
    run = Path(shutil.copytree(cohort, tmp_path / "run"))
    monkeypatch.setattr(JudgePathd, "__call__", None)
    shutil.rmtree(run / "private" / "walk")
    generate(toy_models, run, formats="dicom,nifti")
    assert "has DICOM and NIfTI files now: 39 files" in capsys.readouterr().out
    whole = digest(run / "cohort")
    assert whole == digest(tmp_path / "at once" / "cohort")
    manifest, without = (
        json.loads((folder / "cohort" / "manifest.json").read_text(encoding="utf-8")) for folder in (run, cohort)
    )
    assert manifest["files"] == {name: sha for name, sha in whole.items() if name != "manifest.json"}
    assert manifest["configuration"] == without["configuration"]
    assert manifest.keys() == without.keys()
    for formats in ("png", "nifti"):  # what is there stays
        generate(toy_models, run, formats=formats)
        assert "is complete: 39 files, each as the manifest says" in capsys.readouterr().out
        assert digest(run / "cohort") == whole
    with pytest.raises(RuntimeError) as caught:
        generate(toy_models, run, formats="dicom", seed=5)
    assert "other options" in str(cause(caught.value))
    (run / "cohort" / "dicom" / "normal_000001.dcm").unlink()
    with pytest.raises(RuntimeError) as caught:
        generate(toy_models, run)
    assert "dicom/normal_000001.dcm is absent" in str(cause(caught.value))


def test_another_runs_cohort_is_not_overwritten(cohort: Path, toy_models: Path) -> None:
    before = digest(cohort / "cohort")
    with pytest.raises(RuntimeError) as caught:
        generate(toy_models, cohort, seed=5)
    assert isinstance(cause(caught.value), CohortError)
    assert "other options" in str(cause(caught.value))
    assert digest(cohort / "cohort") == before


def test_damaged_cohort_is_reported(toy_models: Path, tmp_path: Path) -> None:
    generate(toy_models, tmp_path, n_images=4)
    image = sorted((tmp_path / "cohort" / "images").iterdir())[0]
    image.write_bytes(image.read_bytes() + b"x")
    with pytest.raises(RuntimeError) as caught:
        generate(toy_models, tmp_path, n_images=4)
    assert f"{image.name} was changed" in str(cause(caught.value))


def test_one_class_alone(toy_models: Path, tmp_path: Path) -> None:
    generate(toy_models, tmp_path, n_images=4, classes="tuberculosis")
    names = [path.name for path in (tmp_path / "cohort" / "images").iterdir()]
    assert len(names) == 4
    assert all(name.startswith("tuberculosis_") for name in names)


def test_walk_on_the_guides_themselves(toy_models: Path, tmp_path: Path) -> None:
    generate(toy_models, tmp_path, n_images=2, guides="image")
    manifest = json.loads((tmp_path / "cohort" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["configuration"]["guides"] == "image"
    assert not {"latent_identity", "latent_class"} & manifest["configuration"]["models"].keys()
    comparison = json.loads((tmp_path / "private" / "paths.json").read_text(encoding="utf-8"))
    assert comparison["PLAN"]["identity_divergence"] < comparison["linear"]["identity_divergence"]


def test_naming_the_folder_loads_no_network(cohort: Path, toy_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = json.loads((cohort / "cohort" / "manifest.json").read_text(encoding="utf-8"))
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs" / "plan.json"))
    options = {"models_dir": str(toy_models), "device": "cpu", "n_images": 12, "n_points": 5}
    parser.update(options)
    monkeypatch.setattr("bundle.networks.weights.torch.load", None)
    monkeypatch.setattr("bundle.networks.weights.sha256_file", None)
    named = parser.get_parsed_content("output_dir")
    assert named == f"output/xray-{content_digest(manifest['configuration'], 10)}"
    assert parser.get_parsed_content("ledger").settings == manifest["configuration"]
    parser.update({"gate#threshold": 0.5})
    parser.parse(reset=True)
    assert parser.get_parsed_content("settings").threshold == 0.5
    assert parser.get_parsed_content("output_dir") != named


def test_students_are_asked_where_they_are_there(cohort: Path, toy_models: Path, tmp_path: Path) -> None:
    manifest = json.loads((cohort / "cohort" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["configuration"]["guides"] == "latent"
    assert {"latent_identity", "latent_class"} < manifest["configuration"]["models"].keys()
    assert default_guides(str(toy_models)) == "latent"
    shutil.copytree(toy_models, tmp_path / "models")
    (tmp_path / "models" / "latent_class.json").unlink()
    assert default_guides(str(tmp_path / "models")) == "image"


DYING = """
import os, runpy, signal
from bundle.cohort.judge import JudgePathd

judge, paths = JudgePathd.__call__, []

def judge_and_die(self, data):
    paths.append(data["index"])
    if os.environ["RANK"] == "1" and len(paths) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return judge(self, data)

JudgePathd.__call__ = judge_and_die
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
"""


def test_two_processes_write_the_cohort_of_one_though_one_of_them_dies(toy_models: Path, tmp_path: Path) -> None:
    """Processes as PyTorch's launcher starts them, one thread each."""
    (tmp_path / "dying.py").write_text(DYING, encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]

    def run(name: str, *start: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *start, "run", "generate", "--output_dir", str(tmp_path / name)]
        command += ["--config_file", str(ROOT / "configs" / "plan.json"), "--bundle_root", str(ROOT)]
        command += ["--models_dir", str(toy_models), "--device", "cpu", "--n_images", "40", "--n_points", "5"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    alone = run("alone", "-m", "monai.bundle")
    assert alone.returncode == 0, alone.stderr
    assert run("together", *launcher, str(tmp_path / "dying.py")).returncode != 0
    assert not (tmp_path / "together" / "cohort").exists()
    left = {path.name for path in (tmp_path / "together" / "private" / "walk").glob("pair_*.pt")}
    assert {"pair_1_000000.pt", "pair_1_000001.pt"} <= left
    assert "pair_1_000002.pt" not in left
    together = run("together", *launcher, "-m", "monai.bundle")
    assert together.returncode == 0, together.stderr
    assert together.stdout.count("points passed the gate") == 1
    assert digest(tmp_path / "together" / "cohort") == digest(tmp_path / "alone" / "cohort")


def test_published_objective_runs(toy_models: Path, tmp_path: Path) -> None:
    few = {"n_images": 2, "walk_settings#steps": 3}  # all 500 steps would tell no more
    generate(toy_models, tmp_path, config_file=PUBLISHED, **few)
    assert len(list((tmp_path / "cohort" / "images").iterdir())) == 2
    manifest = json.loads((tmp_path / "cohort" / "manifest.json").read_text(encoding="utf-8"))
    configuration = manifest["configuration"]
    assert (configuration["objective"], configuration["guides"]) == ("published", "image")
    assert {"objective", "walk_settings"} < configuration["changed_configuration"].keys()
    assert "**The configuration was changed" in (tmp_path / "cohort" / "datasheet.md").read_text(encoding="utf-8")
    assert configuration["weights"] == {"lambda_id": 0.1, "lambda_dist": 1.0, "lambda_class": 1.0, "chunk": 4}
    assert configuration["walk"] == {"steps": 3, "learning_rate": 0.1, "cosine": False, "tolerance": 0.0}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sed": 7}, "seed"),
        ({"n_images": 0}, "1"),
        ({"n_points": 2}, "3"),
        ({"objective": "published"}, "name configs/published.json behind configs/plan.json"),
        ({"modality": "fundsu"}, "The nearest is fundus"),
        ({"classes": "tuberculose"}, "tuberculosis"),
        ({"classes": []}, "the list is empty"),
        ({"classes": 1.0}, "1.0 is not a class"),
        ({"formats": "png,dcm"}, "--formats must name some of png, dicom, nifti, not 'dcm'. The nearest is dicom"),
        ({"guides": "latents"}, "latent"),
        ({"guides": "latent", "config_file": PUBLISHED}, "Leave guides out"),
        ({"lambda_class": 3.0, "config_file": PUBLISHED}, "--lambda_class 3 does not reach the objective"),
        ({"objective#lambda_prior": 3.0}, "--lambda_prior 1 does not reach the objective"),
        ({"objective#lambda_id": -5}, "lambda_id must be a number of at least 0, not -5"),
        ({"objective#lambda_even": float("nan")}, "lambda_even must be a number"),
        ({"walk_settings#steps": 2.5}, "steps must be a whole number of at least 0, not 2.5"),
        ({"walk_settings#learning_rate": -1}, "learning_rate must be a number"),
        ({"walk_settings#cosine": "yes"}, "cosine must be true or false"),
        ({"gate#threshold": "abc"}, "a probability in (0, 1], not 'abc'"),
    ],
)
def test_impossible_options_name_the_nearest(
    toy_models: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(RuntimeError) as caught:
        generate(toy_models, tmp_path, **options)
    assert isinstance(cause(caught.value), OptionError | CohortError)
    assert words in str(cause(caught.value))
    assert not (tmp_path / "cohort").exists()


def test_distance_to_the_nearest_training_image_is_drawn(
    tiny_models: Path, tiny_dataset: Path, squeezenet_file: Path, tmp_path: Path
) -> None:
    options = {"dataset_dir": str(tiny_dataset), "squeezenet_file": str(squeezenet_file), "n_images": 2}
    generate(tiny_models, tmp_path / "run", **options)
    with Image.open(tmp_path / "run" / "private" / "nearest.png") as picture:
        assert picture.width > 100
    comparison = json.loads((tmp_path / "run" / "private" / "paths.json").read_text(encoding="utf-8"))
    assert comparison["linear"]["nearest"] > 0.0
    assert "nearest" not in (tmp_path / "run" / "cohort" / "manifest.json").read_text(encoding="utf-8")


def test_distance_to_the_nearest_is_drawn_for_a_complete_cohort_as_well(
    tiny_models: Path, tiny_dataset: Path, squeezenet_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = {"dataset_dir": str(tiny_dataset), "squeezenet_file": str(squeezenet_file), "n_images": 2}
    private = tmp_path / "private"
    generate(tiny_models, tmp_path, n_images=2)
    before = digest(tmp_path / "cohort")
    assert not (private / "nearest.png").exists()
    generate(tiny_models, tmp_path, **options)
    assert (private / "nearest.png").exists()
    assert json.loads((private / "paths.json").read_text(encoding="utf-8"))["PLAN"]["nearest"] > 0.0
    (private / "nearest.png").unlink()
    next((private / "walk").glob("pair_*.pt")).unlink()
    generate(tiny_models, tmp_path, **options)
    assert "lacks walked pairs of the cohort" in "".join(capfd.readouterr())
    assert not (private / "nearest.png").exists()
    assert digest(tmp_path / "cohort") == before


def test_other_training_images_than_the_models_are_refused(
    toy_models: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError) as caught:
        generate(toy_models, tmp_path, dataset_dir=str(tiny_dataset))
    assert "is not what the models" in str(cause(caught.value))
    assert not (tmp_path / "cohort").exists()


def refusal(models_dir: Path, output_dir: Path, **options: Any) -> str:
    """The one line with which a run is refused."""
    with pytest.raises(RuntimeError) as caught:
        generate(models_dir, output_dir, **options)
    error = cause(caught.value)
    assert isinstance(error, CohortError | InUseError | WeightsError)
    assert "\n" not in str(error)
    return str(error)


def test_second_run_in_one_folder_is_refused_until_the_first_has_ended(toy_models: Path, tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    with FileLock(tmp_path / "private" / "generate.lock"):
        message = refusal(toy_models, tmp_path, n_images=2)
        assert message.startswith(f"{tmp_path} is in use: another run")
        assert "run the same command again, or name another output_dir" in message
        assert [path.name for path in tmp_path.rglob("*")] == ["private", "generate.lock"]
    generate(toy_models, tmp_path, n_images=2)  # what a killed run leaves is the file without the lock
    with FileLock(tmp_path / "private" / "generate.lock"):
        generate(toy_models, tmp_path, n_images=2)  # to verify takes no lock
    assert "generate.lock" not in digest(tmp_path / "cohort")


def test_changes_besides_options_are_in_the_manifest_and_the_datasheet(toy_models: Path, tmp_path: Path) -> None:
    generate(toy_models, tmp_path, n_images=2, **{"dataset#seed": 5})
    manifest = json.loads((tmp_path / "cohort" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["configuration"]["seed"] == 0
    assert manifest["configuration"]["changed_configuration"] == {"dataset#seed": 5}
    assert "configuration was changed" in (tmp_path / "cohort" / "datasheet.md").read_text(encoding="utf-8")
    assert "changed_configuration" in refusal(toy_models, tmp_path, n_images=2)


def test_output_folder_is_named_after_the_options(
    toy_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = str(ROOT / "configs" / "plan.json")
    options: dict[str, Any] = {"bundle_root": str(ROOT), "models_dir": str(toy_models), "n_points": 5, "device": "cpu"}
    for seed, formats in ((0, "png"), (1, "png"), (0, "dicom")):
        monai.bundle.run("generate", config_file=config, n_images=2, seed=seed, formats=formats, **options)
    folders = sorted(path.name for path in (tmp_path / "output").iterdir())
    assert len(folders) == 2
    assert len(list((tmp_path / "output").glob("*/cohort/dicom"))) == 1
    assert all(folder.startswith("xray-") for folder in folders)


def test_private_folder_is_its_owners_alone(cohort: Path) -> None:
    private = [cohort / "private", *(cohort / "private").rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o700, 0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in private if path.is_dir()} == {0o700}


def test_gate_with_another_threshold_finishes_and_confirms_no_other_gates_cohort(
    cohort: Path, toy_models: Path, tmp_path: Path
) -> None:
    models = Path(shutil.copytree(toy_models, tmp_path / "models"))
    info = json.loads((models / "gate_identity.json").read_text(encoding="utf-8"))
    assert info["scores"]["threshold"] == 0.999
    write_json(models / "gate_identity.json", {**info, "scores": {"threshold": 0.1}})
    assert "gate_identity.json was changed" in refusal(models, tmp_path / "new")
    write_info(models / "gate_identity.pt", {**info, "scores": {"threshold": 0.1}})
    run = Path(shutil.copytree(cohort, tmp_path / "run"))
    assert "other options" in (message := refusal(models, run))
    assert "threshold" in message
    shutil.rmtree(run / "cohort")
    assert "threshold" in refusal(models, run)
    for threshold in (None, "high", 7, float("nan")):
        write_info(models / "gate_identity.pt", {**info, "scores": {"threshold": threshold}})
        assert "threshold" in refusal(models, tmp_path / "new")
    assert not (tmp_path / "new" / "cohort").exists()


def test_pairs_of_another_seed_are_not_released(toy_models: Path, tmp_path: Path) -> None:
    generate(toy_models, tmp_path, n_images=2, seed=1)
    shutil.rmtree(tmp_path / "cohort")
    claim = tmp_path / "private" / "walk" / "settings.json"
    claim.write_text(claim.read_text(encoding="utf-8").replace('"seed": 1', '"seed": 2'), encoding="utf-8")
    assert "was edited" in refusal(toy_models, tmp_path, n_images=2, seed=2)
    claim.unlink()
    assert "is gone" in refusal(toy_models, tmp_path, n_images=2, seed=2)
    assert not (tmp_path / "cohort").exists()


def test_settings_of_another_kind_of_image_than_the_models_are_refused(toy_models: Path, tmp_path: Path) -> None:
    message = refusal(toy_models, tmp_path, modality="fundus")
    assert "the models are of xray images, and the settings are those of fundus images" in message


class Stopped(Exception):
    pass


def test_endless_cohort_says_what_it_takes_and_starts_at_once(
    toy_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(self: JudgePathd, data: Any) -> dict[str, Any]:
        raise Stopped

    monkeypatch.setattr(JudgePathd, "__call__", stop)
    with pytest.raises(RuntimeError) as caught:
        generate(toy_models, tmp_path, n_images=2**63 - 1)
    assert isinstance(cause(caught.value), Stopped)
    out = capsys.readouterr().out
    assert "9223372036854775807 images of 32 x 32 pixels, of which 0 are walked" in out
    assert " ZB on a disk with " in out
    assert "the disk will be full before the end" in out  # MONAI's logging writes there


def test_bar_moves_with_the_walk_and_is_full_only_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = WalkLedger(tmp_path, {"seed": 0}, {0: 64}, 10, 16, [0.0])
    ledger.open()
    assert ledger.next_block() == (0, 0)
    progress = GenerationProgress(ledger, steps=100)
    shown = []

    def walk(engine: Engine, block: int) -> None:
        for _ in range(100):
            progress.step(torch.zeros(1))
            shown.append(progress._bar.n)
        for index in range(16):
            record = {"image": torch.zeros(10, 2, 2).byte(), "features": torch.zeros(10, 1)}
            ledger.add(0, index, {**record, **dict.fromkeys(VERDICT, torch.ones(10, dtype=torch.bool))})

    engine = Engine(walk)
    progress.attach(engine)
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: shown.append(progress._bar.n))
    engine.run([0])
    assert shown == sorted(shown)
    assert len(set(shown)) > 50
    assert max(shown) == 63
    assert progress._bar.n == 64
    assert "100%" in terminal.getvalue()
