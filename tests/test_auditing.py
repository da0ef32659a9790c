# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""`audit` and `train_audit` from end to end, as the command line runs them."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import mlflow
import monai.bundle
import numpy as np
import pytest
from PIL import Image, ImageOps

from bundle.auditing.networks import audit_networks
from bundle.auditing.removal import AUDIT_DIR, COHORT_DIR
from bundle.auditing.verdict import COPIES, UNUSABLE
from bundle.data import ImageData, open_dataset
from bundle.networks.weights import load_weights, save_weights
from bundle.options import OptionError
from bundle.tracking import tracking_uri
from bundle.training.audit_networks import AUDIT_NETWORKS
from tests.auditing.test_engine import strangers
from tests.hospital import CohortMaker, Networks, real_image

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def bundle_root(tmp_path: Path) -> Path:
    """A bundle without models, whose audit networks train for one epoch."""
    root = tmp_path / "bundle"
    (root / "configs").mkdir(parents=True)
    (root / "models" / "xray").mkdir(parents=True)
    for name in ("metadata.json", "logging.conf", "audit.json"):
        shutil.copyfile(ROOT / "configs" / name, root / "configs" / name)
    config = json.loads((ROOT / "configs" / "train_audit.json").read_text(encoding="utf-8"))
    config |= {"max_epochs": 1, "resolution": 32, "batch_size": 8}
    (root / "configs" / "train_audit.json").write_text(json.dumps(config), encoding="utf-8")
    return root


@pytest.fixture
def data(tiny_dataset: Path, tmp_path: Path) -> ImageData:
    return open_dataset(tiny_dataset, tmp_path / "opened", resolution=32)


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    folder = tmp_path / "cohort"
    folder.mkdir()
    for number in range(20):
        pixels = np.random.default_rng(900 + number).integers(0, 256, (40, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def find_networks(data: ImageData, dataset_dir: Path, models_dir: Path, bundle_root: Path, tmp_path: Path) -> Any:
    return audit_networks(data, str(dataset_dir), str(models_dir), str(bundle_root), str(tmp_path / "opened"))


def test_networks_are_trained_once_for_the_same_content(
    data: ImageData, tiny_dataset: Path, bundle_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models_dir = bundle_root / "models" / "xray"
    networks, infos = find_networks(data, tiny_dataset, models_dir, bundle_root, tmp_path)
    assert networks.keys() == infos.keys() == AUDIT_NETWORKS.keys()
    assert "Training them now, once" in capsys.readouterr().out
    assert infos["audit_embedding"]["split_sha256"] == data.split_sha256
    trained = sorted((bundle_root / "output" / "audit_networks").glob("*/models/*.pt"))
    assert len(trained) == 2
    moved = tmp_path / "moved"
    shutil.copytree(tiny_dataset, moved)
    again = open_dataset(moved, tmp_path / "opened", resolution=32)
    _, found = find_networks(again, moved, models_dir, bundle_root, tmp_path)
    assert found == infos
    assert "Training" not in capsys.readouterr().out
    # Beside the generator, they are found without looking further.
    _, found = find_networks(data, tiny_dataset, trained[0].parent, tmp_path / "no_bundle", tmp_path)
    assert found == infos


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seen": "held out"}, "was trained on 1 of the val and test images"),
        ({"seen": []}, "has not seen 28 of the training images"),
        ({"preprocessing": "plain"}, "is for another preprocessing"),
    ],
)
def test_networks_that_do_not_fit_are_not_used(
    change: dict[str, Any],
    words: str,
    data: ImageData,
    tiny_dataset: Path,
    bundle_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    models_dir = bundle_root / "models" / "xray"
    seen = [digest[:16] for digest in data.digests("train")]
    info = {"modality": "xray", "preprocessing": "crop_histogram", "seen": seen, **change}
    if change.get("seen") == "held out":
        info["seen"] = [*seen, data.digests("test")[0][:16]]
    for name, network in AUDIT_NETWORKS.items():
        save_weights(network(1, side=32, widths=(4, 4), dimension=4), models_dir / f"{name}.pt", info)
    _, found = find_networks(data, tiny_dataset, models_dir, bundle_root, tmp_path)
    assert words in capsys.readouterr().out
    assert found["audit_embedding"]["sha256"] != load_weights(models_dir / "audit_embedding.pt")[1]["sha256"]


def test_networks_that_were_touched_are_told_of(
    data: ImageData, tiny_dataset: Path, bundle_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models_dir = bundle_root / "models" / "xray"
    info = {"modality": "xray", "preprocessing": "crop_histogram", "seen": []}
    for name, network in AUDIT_NETWORKS.items():
        save_weights(network(1, side=32, widths=(4, 4), dimension=4), models_dir / f"{name}.pt", info)
    path = models_dir / "audit_embedding.json"
    path.write_text(path.read_text().replace("crop_histogram", "plain"))
    find_networks(data, tiny_dataset, models_dir, bundle_root, tmp_path)
    assert f"({path} was changed after it was written" in capsys.readouterr().out


def run_audit(**options: Any) -> None:
    root = options.pop("bundle_root", ROOT)
    monai.bundle.run(
        "audit",
        config_file=str(root / "configs" / "audit.json"),
        bundle_root=str(root),
        device="cpu",
        **{name: str(value) if isinstance(value, Path) else value for name, value in options.items()},
    )


def test_one_command_trains_judges_and_records(
    tiny_dataset: Path, cohort: Path, bundle_root: Path, squeezenet_file: Path, tmp_path: Path
) -> None:
    output_dir = tmp_path / "audit"
    options = {
        "cohort_dir": cohort,
        "dataset_dir": tiny_dataset,
        "output_dir": output_dir,
        "squeezenet_file": squeezenet_file,
    }
    with pytest.raises(SystemExit) as stopped:
        run_audit(bundle_root=bundle_root, **options)
    assert stopped.value.code == UNUSABLE  # networks of one epoch find no mirrored copy
    results = json.loads((output_dir / "results.json").read_text(encoding="utf-8"))
    assert results["verdict"]["exit_code"] == UNUSABLE
    assert results["cohort"]["images"] == 20
    assert "THE RESULTS CANNOT BE USED" in (output_dir / "report.html").read_text(encoding="utf-8")
    client = mlflow.MlflowClient(tracking_uri(output_dir))
    experiment = client.get_experiment_by_name("audit")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["exit_code"] == UNUSABLE
    assert run.data.metrics["copy_rate/cohort"] == pytest.approx(
        results["privacy"][0]["figures"]["cohort"]["value"], abs=1e-3
    )
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert names == {"report.html", "results.json"}


def test_audit_needs_a_cohort_and_real_images(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as error:
        run_audit(output_dir=tmp_path / "audit", cohort_preprocessing="cropped")
    cause: BaseException | None = error.value
    while not isinstance(cause, OptionError):
        assert cause is not None
        cause = cause.__cause__
    assert "--cohort_dir must be given." in str(cause)
    assert "--dataset_dir must be given." in str(cause)
    assert "--cohort_preprocessing must be one of auto, applied, none" in str(cause)
    assert not (tmp_path / "audit").exists()


def test_shipped_networks_find_copies_of_real_images_in_their_files_as_they_lie(
    shared_data: Path, tmp_path: Path
) -> None:
    dataset_dir = tmp_path / "some"
    dataset_dir.mkdir()
    with (shared_data / "cxr" / "labels.csv").open(encoding="utf-8") as stream:
        some = list(csv.DictReader(stream))[::4]
    for row in some:
        shutil.copyfile(shared_data / "cxr" / row["image"], dataset_dir / row["image"])
    with (dataset_dir / "labels.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, list(some[0]))
        table.writeheader()
        table.writerows(some)
    rows = [row for row in some if row["split"] == "train"][:200:10]
    folder = tmp_path / "planted"
    folder.mkdir()
    for number, row in enumerate(rows):
        image: Image.Image = Image.open(dataset_dir / row["image"])
        if number % 2:
            image = ImageOps.mirror(image).rotate(5, Image.Resampling.BICUBIC)
        image.save(folder / f"{number:03d}.jpg" if number % 4 == 3 else folder / f"{number:03d}.png")
    trunk = shared_data / "weights" / "squeezenet1_1_features_fp32.pth"
    output_dir = tmp_path / "audit"
    with pytest.raises(SystemExit) as stopped:
        run_audit(cohort_dir=folder, dataset_dir=dataset_dir, output_dir=output_dir, squeezenet_file=trunk)
    assert stopped.value.code == COPIES
    results = json.loads((output_dir / "results.json").read_text(encoding="utf-8"))
    assert all(control["passed"] is not False for control in results["controls"])
    assert results["cohort"]["preprocessing_applied_here"] == "crop_histogram"
    assert results["pixel_copies"] == {"train": 10, "val": 0, "test": 0}
    figures = results["privacy"][0]["figures"]
    assert figures["cohort"]["value"] >= 0.9
    with (output_dir / "private" / "nearest.csv").open(encoding="utf-8") as stream:
        nearest = {row["image"].split(".")[0]: row["nearest_real_image"] for row in csv.DictReader(stream)}
    right = sum(nearest[f"{number:03d}"] == row["image"] for number, row in enumerate(rows))
    assert right >= 0.9 * len(rows)
    text = (output_dir / "report.html").read_text(encoding="utf-8")
    assert not any(row["image"] in text or row["patient_id"] in text for row in rows)


def test_the_exit_code_is_that_of_the_audit_of_what_is_left(
    hospital: Path,
    networks: Networks,
    new_cohort: CohortMaker,
    bundle_root: Path,
    squeezenet_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept_reference: None,
) -> None:
    for module in ("assessment", "controls", "distances", "thresholds"):
        monkeypatch.setattr(f"bundle.auditing.{module}.DRAWS", 100)
    monkeypatch.setattr("bundle.auditing.assessment.HALVES", 20)
    models_dir = bundle_root / "models" / "xray"
    for name, network in networks[0].items():
        save_weights(network, models_dir / f"{name}.pt", networks[1][name])
    folder = new_cohort("with_copies", [*strangers(24), real_image(20)])
    with pytest.raises(SystemExit) as stopped:
        run_audit(
            bundle_root=bundle_root,
            cohort_dir=folder,
            dataset_dir=hospital,
            output_dir=tmp_path / "audit",
            squeezenet_file=squeezenet_file,
            cohort_preprocessing="none",
            remove_flagged=True,
        )
    assert stopped.value.code == UNUSABLE  # the further networks train for one epoch and find no altered copy
    first = json.loads((tmp_path / "audit" / "results.json").read_text(encoding="utf-8"))
    assert first["verdict"]["exit_code"] == COPIES
    results = json.loads((tmp_path / "audit" / AUDIT_DIR / "results.json").read_text(encoding="utf-8"))
    assert results["verdict"]["exit_code"] == UNUSABLE
    assert results["cohort"]["images"] == 24
    assert results["cohort"]["filtered"][0]["removed"] == 1
    assert results["networks"] != first["networks"]
    assert len(list((tmp_path / "audit" / COHORT_DIR).glob("*.png"))) == 24
