# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The commands as functions, and the notebook that shows them."""

from __future__ import annotations

import inspect
import io
import json
import logging
import os
import shutil
import subprocess
import sys
from logging.config import fileConfig
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
from PIL import Image

import bundle
from bundle.auditing.verdict import COPIES, PASSED, UNUSABLE
from bundle.commands import COMMANDS
from bundle.data import open_dataset
from bundle.data.dataset import IDENTITY_SPLITS
from bundle.networks.latent_guides import LATENT_GUIDES
from bundle.networks.model_set import GENERATION_NETWORKS, ModelSet, load_models
from bundle.networks.weights import save_weights
from bundle.options import INTERNAL
from bundle.training.audit_networks import AUDIT_NETWORKS, DIGEST
from tests.conftest import ROOT
from tests.test_generate import digest

NOTEBOOK = ROOT / "docs" / "example.ipynb"
FEW: dict[str, Any] = {"n_images": 12, "n_points": 5, "device": "cpu"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that is not the bundle's."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return folder


@pytest.fixture
def audited_models(tiny_models: Path, tiny_dataset: Path) -> Path:
    """The networks of tiny_dataset, with untrained ones of the audit beside them."""
    data = open_dataset(tiny_dataset, tiny_models.parent, resolution=32)
    seen = [image[:DIGEST] for image in data.digests(IDENTITY_SPLITS)]
    info = {"modality": "xray", "preprocessing": data.modality.preprocessing, "seen": seen}
    for name, network in AUDIT_NETWORKS.items():
        save_weights(network(1, side=32, widths=(4, 4), dimension=4), tiny_models / f"{name}.pt", info)
    return tiny_models


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("assessment", "controls", "distances", "thresholds"):
        monkeypatch.setattr(f"bundle.auditing.{module}.DRAWS", 40)
    monkeypatch.setattr("bundle.auditing.assessment.HALVES", 4)


def test_importing_the_bundle_imports_no_framework() -> None:
    code = (
        "import sys, bundle; print(sorted({'monai', 'torch', 'scripts'} & sys.modules.keys()), 'audit' in dir(bundle))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "True"]


def test_every_public_name_is_there() -> None:
    assert all(getattr(bundle, name) is getattr(bundle.api, name) for name in bundle.__all__)
    assert set(bundle.api.__all__) < set(bundle.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'generat'"):
        _ = bundle.generat  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("command", "config"),
    [("generate", "plan"), ("export", "export"), ("audit", "audit"), ("check_data", "check_data")],
)
def test_signature_shows_the_commands_options_and_defaults(command: str, config: str) -> None:
    content = json.loads((ROOT / "configs" / f"{config}.json").read_text(encoding="utf-8"))
    shown = inspect.signature(getattr(bundle, command)).parameters
    assert shown.keys() - {"configs", "options"} == COMMANDS[command].model_fields.keys() - INTERNAL
    required = {name for name, parameter in shown.items() if parameter.default is inspect.Parameter.empty}
    assert (
        required - {"options"}
        == {
            "generate": set(),
            "export": {"cohort_dir"},
            "check_data": {"dataset_dir"},
            "audit": {"cohort_dir", "dataset_dir"},
        }[command]
    )
    for name in shown.keys() & content.keys() - required:
        computed = str(content[name]).startswith(("$", "@"))
        assert shown[name].default == (None if computed else content[name])


def test_generate_makes_and_verifies_the_commands_cohort(
    toy_models: Path, elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort = bundle.generate(models_dir=toy_models, output_dir="mine", **FEW)
    assert cohort.path == elsewhere / "mine" / "cohort"
    config: dict[str, Any] = {"config_file": str(ROOT / "configs" / "plan.json"), "bundle_root": str(ROOT)}
    monai.bundle.run("generate", **config, models_dir=str(toy_models), output_dir=str(tmp_path / "command"), **FEW)
    assert digest(cohort.path) == digest(tmp_path / "command" / "cohort")
    assert len(cohort) == len(cohort.labels) == 12
    assert cohort.labels[0] == {"image": "images/normal_000001.png", "label": 0, "label_name": "normal"}
    assert cohort.manifest["configuration"]["n_images"] == 12
    assert cohort.private == elsewhere / "mine" / "private"
    assert os.fspath(cohort) == str(cohort.path)
    assert repr(cohort) == f"GeneratedCohort of 12 images (6 normal, 6 tuberculosis) in {cohort.path}"
    with Image.open(io.BytesIO(cohort._repr_png_())) as sheet:
        assert sheet.format == "PNG"
    capsys.readouterr()
    again = bundle.generate(models_dir=toy_models, output_dir=elsewhere / "mine", seed=None, **FEW)
    assert again == cohort
    assert "is complete" in capsys.readouterr().out
    with pytest.raises(bundle.CohortError, match="was made with other options") as raised:
        bundle.generate(models_dir=toy_models, output_dir="mine", **{**FEW, "seed": 5})
    assert_plain(raised.value)


def test_export_adds_what_generate_would_have_written(
    toy_models: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort = bundle.generate(models_dir=toy_models, output_dir="mine", **FEW)
    whole = bundle.generate(models_dir=toy_models, output_dir="whole", formats=["dicom", "nifti"], **FEW)
    capsys.readouterr()
    exported = bundle.export(cohort_dir=cohort, formats=("dicom", "nifti"))
    assert exported == cohort
    assert digest(exported.path) == digest(whole.path)
    bundle.export(cohort_dir="mine/cohort")
    assert "has DICOM and NIfTI files already" in capsys.readouterr().out
    with pytest.raises(bundle.OptionError, match=r"--formats must name some of .* The nearest is dicom"):
        bundle.export(cohort_dir=cohort, formats="dcm")
    next((cohort.path / "dicom").iterdir()).unlink()
    with pytest.raises(bundle.CohortError, match="is absent") as raised:
        bundle.export(cohort_dir=cohort)
    assert_plain(raised.value)


def assert_plain(error: BaseException) -> None:
    """Nothing of MONAI's is shown around an error."""
    assert not isinstance(error.__cause__, RuntimeError)
    assert not isinstance(error.__context__, RuntimeError)


def test_default_folder_is_in_the_working_directory(toy_models: Path, elsewhere: Path) -> None:
    cohort = bundle.generate(models_dir=toy_models, n_images=2, n_points=5, device="cpu")
    assert cohort.path.parents[1] == elsewhere / "output"
    assert cohort.path.parent.name.startswith("xray-")


def test_further_configurations_and_parts_of_them_count(toy_models: Path, elsewhere: Path) -> None:
    (elsewhere / "little.json").write_text('{"n_images": 2, "n_points": 4}', encoding="utf-8")
    cohort = bundle.generate(
        configs=["configs/published.json", "little.json"],  # the bundle's own, and one of the working directory
        models_dir=toy_models,
        device="cpu",
        **{"walk_settings#steps": 2},
    )
    configuration = cohort.manifest["configuration"]
    assert (configuration["objective"], configuration["walk"]["steps"]) == ("published", 2)
    assert (configuration["n_images"], configuration["n_points"]) == (2, 4)
    with pytest.raises(bundle.OptionError, match=r"configs: nowhere\.json does not exist"):
        bundle.generate(configs="nowhere.json")


def test_a_misspelt_option_is_refused_with_the_nearest() -> None:
    for function in (bundle.generate, bundle.audit, bundle.check_data, bundle.load_models):
        with pytest.raises(bundle.OptionError, match="Did you mean --modality") as raised:
            function(modalty="xray")
        assert raised.value.__cause__ is raised.value.__context__ is None
    with pytest.raises(bundle.OptionError) as raised:
        bundle.audit(cohort_preprocessing="cropped")
    assert "--cohort_dir must be given." in raised.value.problems
    assert any("--cohort_preprocessing must be one of" in problem for problem in raised.value.problems)


def test_errors_are_the_bundles_own(toy_models: Path, tiny_models: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(bundle.DataError, match="is not what the models in") as raised:
        bundle.generate(models_dir=toy_models, dataset_dir=tiny_dataset, **FEW)
    assert_plain(raised.value)
    path = tiny_models / "gate_class.pt"
    path.write_bytes(path.read_bytes()[:-1])
    for function in (bundle.load_models, bundle.generate):
        with pytest.raises(bundle.WeightsError, match="is not the file that its JSON describes") as damaged:
            function(models_dir=tiny_models, **FEW)
        assert_plain(damaged.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(bundle.DataError):
        bundle.check_data(dataset_dir=tmp_path / "empty")


def test_a_run_leaves_the_programs_logging_as_it_was(
    toy_models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load_loudly(*arguments: Any) -> ModelSet:
        fileConfig(ROOT / "configs" / "logging.conf", disable_existing_loggers=False)  # as training of networks does
        return load_models(*arguments)

    before = (logging.root.level, [*logging.root.handlers], logging.getLogger("ignite").level)
    monkeypatch.setattr("bundle.networks.model_set.load_models", load_loudly)
    bundle.load_models(models_dir=toy_models, device="cpu")
    assert (logging.root.level, logging.root.handlers, logging.getLogger("ignite").level) == before
    assert capsys.readouterr().out == ""


def test_models_are_ready_to_use(toy_models: Path) -> None:
    models = bundle.load_models(models_dir=toy_models, device="cpu")
    assert tuple(models.networks) == (*GENERATION_NETWORKS, *LATENT_GUIDES)
    assert not any(network.training for network in models.networks.values())
    assert tuple(bundle.load_models(models_dir=toy_models, guides="image").networks) == GENERATION_NETWORKS


def test_check_data_tells_what_it_found(tiny_dataset: Path, tmp_path: Path) -> None:
    checked = bundle.check_data(dataset_dir=tiny_dataset, output_dir="checked", resolution=32)
    assert (checked.usable, checked.problems) == (True, [])
    assert checked.contact_sheet is not None and checked.contact_sheet.is_file()
    assert "40 images of 40 patients" in checked.summary
    assert repr(checked) == "DataCheck: usable, 40 images"
    spoilt = shutil.copytree(tiny_dataset, tmp_path / "spoilt")
    (spoilt / "normal" / "surname.png").write_bytes(b"")
    checked = bundle.check_data(dataset_dir=[spoilt], output_dir="spoilt")
    assert not checked.usable
    assert checked.contact_sheet is None
    assert [(problem.name, problem.kind) for problem in checked.problems] == [("normal/surname.png", "zero bytes")]
    assert repr(checked) == "DataCheck: not usable, 1 problem, 41 images"


@pytest.mark.parametrize(("code", "status"), [(PASSED, "passed"), (COPIES, "copies"), (UNUSABLE, "unusable")])
def test_a_verdict_is_read_from_the_results(code: int, status: str, tmp_path: Path) -> None:
    result = bundle.AuditResult(
        tmp_path, {"verdict": {"exit_code": code, "title": "THE TITLE", "reasons": ["one", "two"]}}
    )
    assert (result.status, result.exit_code, result.title, result.reasons) == (
        status,
        code,
        "THE TITLE",
        ("one", "two"),
    )
    assert repr(result).split("\n")[1:4] == ["THE TITLE", "- one", "- two"]


def test_notebook_is_small_and_holds_no_outputs() -> None:
    assert NOTEBOOK.stat().st_size < 20_000
    for cell in cells():
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


def cells() -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.usefixtures("few_draws")
def test_notebook_makes_a_cohort_and_a_verdict(
    tiny_dataset: Path, audited_models: Path, squeezenet_file: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parameters = {
        "bundle_root": str(ROOT),
        "dataset_dir": str(tiny_dataset),
        "modality": "xray",
        "models_dir": str(audited_models),
        "squeezenet_file": str(squeezenet_file),
        "output_dir": "example",
        "n_images": 20,
    }
    names: dict[str, Any] = {}
    for cell in cells():
        exec("".join(cell["source"]), names)
        if "parameters" in cell["metadata"].get("tags", []):
            assert parameters.keys() == names.keys() - {"__builtins__"}
            names |= parameters
    assert names["checked"].usable
    assert len(names["cohort"]) == 20
    verdict = names["verdict"]
    results = json.loads((elsewhere / "example" / "audit" / "results.json").read_text(encoding="utf-8"))
    assert results == json.loads(json.dumps(verdict.results))
    assert (verdict.status, verdict.exit_code) == ("unusable", UNUSABLE)  # untrained networks find no hidden copy
    assert verdict.report == elsewhere / "example" / "audit" / "report.html"
    assert verdict.report.is_file() and verdict.private.is_dir()
    assert f"exit code {UNUSABLE}" in repr(verdict)
    assert "points passed the gate" in capsys.readouterr().out
