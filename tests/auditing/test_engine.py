# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Whole audits of cohorts whose verdict is known."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from PIL import Image

from bundle.auditing.engine import AuditEngine
from bundle.auditing.images import open_cohort
from bundle.auditing.reference import Reference
from bundle.auditing.tables import audit_summary
from bundle.auditing.verdict import COPIES, PASSED, UNUSABLE
from bundle.cohort.writer import write_cohort
from bundle.data import DataError, ImageData, get_modality
from bundle.steps import Step, StepProgress, Steps
from tests.hospital import SURNAME, CohortMaker, Networks, real_image

Audit = Callable[..., AuditEngine]


def strangers(n: int) -> list[np.ndarray]:
    """Nobody's images, of far finer blobs than any patient's."""
    coarse = [np.random.default_rng(10_000 + i).integers(0, 256, (7, 7), dtype=np.uint8) for i in range(n)]
    return [np.asarray(Image.fromarray(image).resize((40, 40), Image.Resampling.BICUBIC)) for image in coarse]


@pytest.fixture
def new_audit(
    hospital: Path,
    hospital_data: ImageData,
    networks: Networks,
    squeezenet_file: Path,
    tmp_path: Path,
    kept_reference: None,
) -> Audit:
    def build(folder: Path, output_dir: Path = tmp_path / "audit", **options: Any) -> AuditEngine:
        cohort = open_cohort(folder, hospital, get_modality("xray"))
        settings = {"cohort_preprocessing": "none", "squeezenet_file": squeezenet_file, **options}
        return AuditEngine(cohort, hospital_data, *networks, output_dir, **settings)

    return build


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals of a tenth of the draws: wide enough for what these tests ask, in a tenth of the time."""
    for module in ("assessment", "controls", "distances", "thresholds"):
        monkeypatch.setattr(f"bundle.auditing.{module}.DRAWS", 100)
    monkeypatch.setattr("bundle.auditing.assessment.HALVES", 20)


def rows(engine: AuditEngine) -> dict[str, dict[str, dict[str, Any]]]:
    return {row["key"]: row["figures"] for row in engine.results["privacy"] + engine.results["fidelity"]}


def test_strangers_pass_and_every_measure_tells_training_images_from_test_images(
    new_audit: Audit, new_cohort: CohortMaker, tmp_path: Path
) -> None:
    engine = new_audit(new_cohort("strangers", strangers(50)))
    engine.run()
    assert engine.verdict is not None
    assert (engine.verdict.code, len(engine.verdict.reasons)) == (PASSED, 1), engine.verdict.reasons
    assert all(control["passed"] is not False for control in engine.results["controls"])
    found = rows(engine)
    assert found["copy_rate"]["cohort"]["value"] <= found["copy_rate"]["test"]["high"]
    for key in ("copy_rate", "reidentified", "same_patient_named"):
        assert found[key]["training"]["low"] > found[key]["test"]["high"]
    for key in ("dcr_p5", "nndr_p5", "mml", "lpips_p5"):
        assert found[key]["training"]["high"] < found[key]["test"]["low"]
    assert found["authenticity"]["training"]["value"] == 0.0 < found["authenticity"]["test"]["value"]
    assert found["privacy_loss"]["training"]["low"] > found["privacy_loss"]["test"]["value"]
    assert found["gan_leaks_auc"]["training"]["low"] > 0.5
    assert found["reidentification_auc"]["training"]["low"] > 0.9
    assert found["other_images"]["training"]["value"] > 0.9
    assert "less than one image" in found["gan_leaks_whole_tpr"]["cohort"]["not_estimable"]
    assert found["kid"]["cohort"]["value"] > found["kid"]["test"]["high"]
    tables = (tmp_path / "audit" / "tables.md").read_text(encoding="utf-8")
    assert tables.startswith("# Audit: xray, 50 synthetic images\n")
    assert "**Verdict 0: NO SIGN OF COPIES by these measures.** The cohort does not resemble" in tables
    for listed in ("privacy", "fidelity", "placebo"):
        assert all(f"| {row['title']} | " in tables for row in engine.results[listed])
    assert tables.count("| yes |") == sum(control["passed"] is True for control in engine.results["controls"])
    assert not any(text in tables for text in (str(tmp_path), SURNAME, "MRN-", "0000.png"))
    verdict, _, sentence, nearness, _ = audit_summary(engine.results).split("\n\n")
    assert f"{verdict}\n\n" in tables
    assert f"{sentence}\n\n{nearness}\n\n" in tables
    assert nearness.count("\n| ") == len(engine.results["placebo"])


@pytest.fixture
def planted(new_cohort: CohortMaker) -> Path:
    """30 strangers, then 10 copies of training images as they are and 10 mirrored and darker ones."""
    copies = [real_image(20 + i) for i in range(10)]
    altered = [(0.8 * real_image(40 + i)[:, ::-1]).astype(np.uint8) for i in range(10)]
    return new_cohort("planted", strangers(30) + copies + altered)


def test_copies_in_disguise_stop_a_release(new_audit: Audit, new_cohort: CohortMaker) -> None:
    turned = [255 - np.rot90(real_image(20 + i)) for i in range(4)]
    engine = new_audit(new_cohort("turned", strangers(21) + turned))
    engine.run()
    assert engine.verdict is not None
    assert engine.verdict.code == COPIES
    assert engine.verdict.title == "NOT TO BE RELEASED: the cohort contains transformed real images"
    assert "4 of 25 images are training images that were rotated" in engine.verdict.reasons[0]


def test_a_cohort_beyond_the_reach_of_the_trial_cannot_be_judged(new_audit: Audit, new_cohort: CohortMaker) -> None:
    noise = list(np.random.default_rng(0).integers(0, 256, (25, 40, 40), dtype=np.uint8))
    engine = new_audit(new_cohort("noise", noise))
    engine.run()
    assert engine.verdict is not None
    assert engine.verdict.code == UNUSABLE
    assert "controls do not cover images like these" in engine.verdict.title
    assert "is beyond that of every change" in " ".join(engine.verdict.reasons)


def test_nothing_is_told_of_a_single_image(new_audit: Audit, new_cohort: CohortMaker, tmp_path: Path) -> None:
    engine = new_audit(new_cohort("one", strangers(1)))
    engine.run()
    assert all("not_estimable" in figures["cohort"] for figures in rows(engine).values())
    assert all("not_estimable" in row["difference"] for row in engine.results["placebo"])
    report = (tmp_path / "audit" / "report.html").read_text(encoding="utf-8")
    (lpips,) = engine.distances.lpips_to_train().tolist()
    tables = (tmp_path / "audit" / "tables.md").read_text(encoding="utf-8")
    assert f"{lpips:.3f}" not in report + tables
    assert f"{lpips:.3g}" not in tables


def test_equal_audits_give_equal_reports(new_audit: Audit, new_cohort: CohortMaker, tmp_path: Path) -> None:
    folder = new_cohort("twice", strangers(3))
    for name in ("first", "second"):
        new_audit(folder, tmp_path / name).run()
    for file in ("report.html", "results.json", "tables.md", "private/nearest.csv"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_planted_copies_are_found_and_named_in_private_only(new_audit: Audit, planted: Path, tmp_path: Path) -> None:
    engine = new_audit(planted)
    engine.run()
    assert engine.verdict is not None
    assert engine.verdict.code == COPIES
    words = " ".join(engine.verdict.reasons)
    assert "10 of 50 images are, pixel for pixel, images of dataset_dir (10 of train)" in words
    assert "there are real images in the cohort" in words
    placebo = {row["key"]: row for row in engine.results["placebo"]}["copy_rate"]
    # A gallery as large as the few test images holds a share of the training images that were copied.
    assert placebo["difference"]["value"] > 0.04
    assert placebo["members"]["value"] > placebo["placebo"]["value"]
    assert re.search(r"(1\d|20) of 50 images are nearer to a training image, as a whole or in part", words)
    assert engine.results["single_images"]["by_detector"]["part"] >= 10
    with (tmp_path / "audit" / "private" / "nearest.csv").open(encoding="utf-8") as stream:
        table = {row["image"]: row for row in csv.DictReader(stream)}
    assert len(table) == 50
    for number in range(20):
        row = table[f"{30 + number:04d}.png"]
        source = 20 + number if number < 10 else 30 + number
        assert row["nearest_real_image"] == f"{SURNAME}_{source:03d}.png"
        assert row["copy"] == "1"
        assert number >= 10 or "single image" in row["stopped_as"]
    assert Image.open(tmp_path / "audit" / "private" / "nearest.png").size[0] > 100


def numbers(content: Any) -> Iterator[float]:
    if isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from numbers(value)
    elif isinstance(content, float):
        yield content


def test_report_and_results_hold_aggregates_only(
    new_audit: Audit, planted: Path, hospital: Path, hospital_data: ImageData, tmp_path: Path
) -> None:
    engine = new_audit(planted)
    engine.run()
    report = (tmp_path / "audit" / "report.html").read_text(encoding="utf-8")
    results = (tmp_path / "audit" / "results.json").read_text(encoding="utf-8")
    for text in (report, results):
        assert SURNAME not in text
        assert "MRN-" not in text
        assert str(hospital) not in text
        assert str(tmp_path) not in text
        assert not re.search(r"\d{4}\.png", text)
        assert not any(digest[:16] in text for digest in hospital_data.digests(("train", "val", "test")))
    # No estimate is any single image's distance, whatever its digits.
    reference, rows_of = engine.distances.reference, engine.distances.rows
    points, verifier = reference.points["audit_embedding"], reference.points["audit_verifier"]
    singles = [rows_of["correlation"], points["test_correlation"], points["val_correlation"]]
    singles += [1 - value for value in singles] + [rows_of["verified"], verifier["test_correlation"]]
    singles += [rows_of["lpips"].flatten(), reference.among.flatten()]
    values = torch.cat(singles).double()
    values = values[(values.abs() > 1e-3) & ((values - 1).abs() > 1e-3)]
    published = torch.tensor([value for value in numbers(json.loads(results)) if value not in (0.0, 1.0)])
    assert len(published) > 100
    assert float((published[:, None].double() - values[None]).abs().min()) > 1e-9
    # Nor does the picture draw points for images: a line, a bar and a stroke for each set, and the threshold.
    assert report.count('<g id="line2d_') < 60
    for address in ("http://", "https://"):  # readable offline: nothing is fetched
        assert f'src="{address}' not in report
        assert f'<link rel="stylesheet" href="{address}' not in report


class Stepper(Engine):
    """An engine that does nothing but take steps."""

    def __init__(self, steps: list[Step]) -> None:
        super().__init__(lambda engine, step: step.run())
        self.steps = steps
        StepProgress("counting").attach(self)


def test_work_of_an_earlier_run_counts_as_done_and_not_as_quick(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = Steps(tmp_path)
    work = [steps.step(f"step{i}", 10.0, lambda: {"x": torch.zeros(1)}) for i in range(4)]
    for step in work[:3]:
        step.run()
    Stepper(work).run(work)
    shown = capsys.readouterr().err
    # Nothing is known of the pace before the first step of this run, though three quarters are there.
    assert re.search(r"counting\s+75%\|.*\?", shown)
    assert "100%" in shown
    assert work[3].is_kept()


def test_real_images_given_as_the_cohort_are_said_to_be_real(new_audit: Audit, new_cohort: CohortMaker) -> None:
    engine = new_audit(new_cohort("test_images", [real_image(135 + i) for i in range(20)]))
    engine.run()
    assert engine.verdict is not None
    assert engine.verdict.code == COPIES
    assert "of test): real images were given as the cohort" in engine.verdict.reasons[0]
    assert not any("towards training images" in reason for reason in engine.verdict.reasons)


def test_cells_that_few_images_cannot_fill_say_why(new_audit: Audit, new_cohort: CohortMaker, tmp_path: Path) -> None:
    engine = new_audit(new_cohort("few", strangers(3)))
    engine.run()
    found = rows(engine)
    for key in (
        "dcr_p5",
        "nndr_p5",
        "lpips_p5",
        "aa_train",
        "privacy_loss",
        "gan_leaks_auc",
        "kid",
        "recall",
        "variety",
    ):
        least = 50 if key.endswith("_p5") else 20
        assert f"at least {least} images" in found[key]["cohort"]["not_estimable"]
        assert "value" not in found[key]["cohort"]
    assert found["copy_rate"]["cohort"]["n"] == 3
    assert "not estimable, because" in (tmp_path / "audit" / "report.html").read_text(encoding="utf-8")
    one = new_audit(new_cohort("one", strangers(1)), tmp_path / "one")
    one.run()
    assert one.results["cohort"]["images"] == 1


def test_instrument_that_finds_nothing_is_not_to_be_used(
    new_audit: Audit, new_cohort: CohortMaker, networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = networks[0]["audit_embedding"]
    weight = blind.projection.weight.detach().clone()  # type: ignore[union-attr,operator]
    torch.manual_seed(0)
    blind.projection.weight.copy_(torch.randn_like(weight) * 1e-3)  # type: ignore[union-attr,operator]
    try:
        engine = new_audit(new_cohort("strangers", strangers(25)))
        engine.run()
    finally:
        blind.projection.weight.copy_(weight)  # type: ignore[union-attr,operator]
    assert engine.verdict is not None
    assert engine.verdict.code == UNUSABLE
    assert any(reason.startswith("Control failed: altered copies") for reason in engine.verdict.reasons)


class Killed(Exception):
    pass


def test_killed_audit_goes_on_and_says_the_same(
    new_audit: Audit, planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = new_audit(planted)
    whole.run()
    run = Step.run
    done: list[str] = []

    def run_some(self: Step) -> None:
        if len(done) == 6:
            raise Killed
        done.append(self.name)
        run(self)

    monkeypatch.setattr("bundle.auditing.engine.Reference", Reference)  # nothing is kept from other audits
    monkeypatch.setattr(Step, "run", run_some)
    with pytest.raises(Killed):
        new_audit(planted, tmp_path / "killed").run()
    assert not (tmp_path / "killed" / "report.html").exists()
    monkeypatch.setattr(Step, "run", run)
    computed = []

    def note(step: Step) -> dict[str, torch.Tensor]:
        computed.append(step.name)
        return step.compute()

    engine = new_audit(planted, tmp_path / "killed")
    engine.steps = [replace(step, compute=lambda step=step: note(step)) for step in engine.steps]  # type: ignore[misc]
    engine.run()
    assert computed == [step.name for step in engine.steps[6:]]
    assert engine.results == whole.results


def test_figures_by_class_where_labels_are_known(new_audit: Audit, new_cohort: CohortMaker, tmp_path: Path) -> None:
    folder = new_cohort("labelled", strangers(50))
    with (folder / "labels.csv").open("w", encoding="utf-8") as stream:
        stream.write("image,label\n" + "".join(f"{i:04d}.png,{int(i >= 22)}\n" for i in range(50)))
    engine = new_audit(folder)
    engine.run()
    assert engine.results["cohort"]["labels"] == {"normal": 22, "tuberculosis": 28}
    by_class = {name: {row["key"]: row for row in rows} for name, rows in engine.results["per_class"].items()}
    assert by_class["normal"]["copy_rate"]["figures"]["cohort"]["n"] == 22
    assert by_class["tuberculosis"]["mml"]["figures"]["cohort"]["n"] == 28
    assert "tuberculosis: 28 synthetic images" in (tmp_path / "audit" / "report.html").read_text(encoding="utf-8")


def test_cohort_of_another_split_is_refused(new_audit: Audit, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    images = [(0, torch.from_numpy(image)) for image in strangers(3)]
    write_cohort(folder, images, ("normal", "tuberculosis"), {"split_sha256": "another"}, "")
    with pytest.raises(DataError, match="another split of the data"):
        new_audit(folder)


def test_results_of_another_audit_are_kept(new_audit: Audit, new_cohort: CohortMaker, tmp_path: Path) -> None:
    folder = new_cohort("mine", strangers(2))
    (tmp_path / "audit").mkdir()
    results = tmp_path / "audit" / "results.json"
    results.write_text(json.dumps({"audit_id": new_audit(folder, tmp_path / "elsewhere").audit_id}))
    new_audit(folder)  # the same audit once more
    for other in (json.dumps({"audit_id": "0123456789abcdef"}), "{}", "damaged"):
        results.write_text(other)
        with pytest.raises(DataError, match=r"holds the results of another audit.*name another output_dir"):
            new_audit(folder)
        assert results.read_text() == other
