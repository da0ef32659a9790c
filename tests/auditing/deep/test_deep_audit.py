# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""A whole audit with attacks on the generator, on networks and trainings of a moment."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from bundle.auditing.deep.settings import DeepSettings
from bundle.auditing.engine import AuditEngine
from bundle.auditing.images import open_cohort
from bundle.auditing.networks import default_audit_dir
from bundle.commands import COMMANDS
from bundle.data import ImageData, get_modality
from bundle.networks.embeddings import ContrastiveEmbedding, SiameseVerifier
from bundle.networks.stylegan2 import Generator
from bundle.networks.weights import save_weights
from bundle.options import validate
from tests.conftest import ROOT
from tests.hospital import SURNAME, blobs, write_tiny_recipe

ATTACKS = ["lira", "inversion", "canaries", "singling_out", "linkability", "inference"]


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch, kept_reference: None) -> None:
    for module in ("assessment", "controls", "distances", "thresholds", "deep.attack", "deep.canaries"):
        monkeypatch.setattr(f"bundle.auditing.{module}.DRAWS", 50)
    monkeypatch.setattr("bundle.auditing.assessment.HALVES", 5)
    monkeypatch.setattr("bundle.auditing.placebo.HALVES", 5)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose GANs are tiny; it keeps the shadows of one test for the next."""
    root = tmp_path_factory.mktemp("bundle")
    (root / "configs").mkdir()
    for name in ("metadata.json", "logging.conf"):
        (root / "configs" / name).write_bytes((ROOT / "configs" / name).read_bytes())
    write_tiny_recipe(root / "configs" / "train_gan.json")
    return root


@pytest.fixture
def settings(root: Path, squeezenet_file: Path, tmp_path: Path) -> DeepSettings:
    """Attacks that take seconds."""
    return DeepSettings(
        n_shadows=2,
        shadow_resolution=32,
        shadow_kimg=0.008,
        shadow_samples=24,
        shadow_discriminator="residual",
        inversion_images=20,
        inversion_steps=2,
        inversion_starts=1,
        models_dir=str(tmp_path / "models"),
        bundle_root=str(root),
        squeezenet_file=str(squeezenet_file),
    )


def save_generator(settings: DeepSettings, split_sha256: str) -> None:
    torch.manual_seed(0)
    network = Generator(32, channel_base=256, channel_max=16, z_dim=8, w_dim=8)
    save_weights(network, Path(settings.models_dir) / "generator.pt", {"split_sha256": split_sha256})


def audit(hospital: Path, data: ImageData, output_dir: Path, settings: DeepSettings | None, **options: Any) -> Any:
    folder = output_dir / "synthetic"
    for number in range(24):
        (folder / ("normal", "tuberculosis")[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(blobs(5000 + number))).save(
            folder / ("normal", "tuberculosis")[number % 2] / f"{number:02d}.png"
        )
    torch.manual_seed(0)
    networks: dict[str, torch.nn.Module] = {
        "audit_embedding": ContrastiveEmbedding(1, side=32, widths=(4, 8), dimension=8).eval(),
        "audit_verifier": SiameseVerifier(1, side=32, widths=(4, 8), dimension=8).eval(),
    }
    infos: dict[str, dict[str, Any]] = {name: {"sha256": "0" * 64, "seen": []} for name in networks}
    cohort = open_cohort(folder, hospital, get_modality("xray"))
    engine = AuditEngine(
        cohort, data, networks, infos, output_dir, cohort_preprocessing="none", deep=settings, **options
    )
    engine.run()
    return engine


def test_attacks_are_reported_beside_an_audit_that_they_do_not_change(
    hospital: Path, hospital_data: ImageData, settings: DeepSettings, squeezenet_file: Path, tmp_path: Path
) -> None:
    save_generator(settings, hospital_data.split_sha256)
    options = {"squeezenet_file": squeezenet_file}
    engine = audit(hospital, hospital_data, tmp_path / "deep", settings, **options)
    plain = audit(hospital, hospital_data, tmp_path / "plain", None, **options)
    results = dict(engine.results)
    deep = results.pop("deep")
    assert results | {"audit_id": plain.audit_id} == plain.results
    assert "Attacks on the generator" not in (tmp_path / "plain" / "report.html").read_text(encoding="utf-8")
    assert not (tmp_path / "plain" / "private" / "deep.csv").exists()

    attacks = {attack["key"]: attack for attack in deep["attacks"]}
    assert list(attacks) == ATTACKS
    assert all(attack["controls"] and not attack["reason"] for attack in attacks.values())
    rows = {row["key"]: row for row in attacks["lira"]["rows"]}
    assert 0.0 <= rows["recipe_lpips_auc"]["low"] <= rows["recipe_lpips_auc"]["value"] <= 1.0
    assert "value" in rows["audited_lpips_auc"]
    assert "has seen the members" in rows["audited_embedding_auc"]["not_estimable"]
    assert "less than one image" in rows["recipe_lpips_tpr_1"]["not_estimable"]
    assert deep["settings"]["n_shadows"] == 2
    assert "bundle_root" not in deep["settings"]
    homes = (Path(settings.bundle_root) / "output" / "shadows").glob("*/complete.json")
    assert len(list(homes)) == 4  # two shadows, the one with canaries, and the one made to memorise

    report = (tmp_path / "deep" / "report.html").read_text(encoding="utf-8")
    for text in (report, json.dumps(deep)):
        assert all(name not in text for name in (SURNAME, "MRN-", str(tmp_path), str(hospital)))
    assert report.count("<h3>") >= len(ATTACKS)
    assert "THIS ATTACK CANNOT BE USED" in report  # trainings of a moment memorise nothing
    with (tmp_path / "deep" / "private" / "deep.csv").open(encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == 120
    assert {row["split"] for row in table} == {"train", "test"}
    assert sum(bool(row["reconstruction_lpips"]) for row in table) == 40
    assert all(row["log_ratio_pixels"] and row["image"].startswith(SURNAME) for row in table)


def test_without_the_generator_the_recipe_alone_is_attacked(
    hospital: Path, hospital_data: ImageData, settings: DeepSettings, squeezenet_file: Path, tmp_path: Path
) -> None:
    save_generator(settings, "0" * 64)
    short = replace(settings, deep_controls=False)
    engine = audit(hospital, hospital_data, tmp_path / "deep", short, squeezenet_file=squeezenet_file)
    attacks = {attack["key"]: attack for attack in engine.results["deep"]["attacks"]}
    assert "trained with another split" in attacks["inversion"]["reason"]
    assert attacks["inversion"]["usable"] is False
    rows = {row["key"]: row for row in attacks["lira"]["rows"]}
    assert "trained with another split" in rows["audited_lpips_auc"]["not_estimable"]
    assert "value" in rows["recipe_lpips_auc"]
    assert [control["key"] for control in attacks["lira"]["controls"]] == ["relabelled"]
    assert "another split" in (tmp_path / "deep" / "report.html").read_text(encoding="utf-8")


def configured(**options: Any) -> ConfigParser:
    parser = ConfigParser(ConfigParser.load_config_file(str(ROOT / "configs" / "audit.json")))
    parser.update(
        {
            "cohort": SimpleNamespace(sha256="a", holds=None, not_judged=()),
            "dataset_dir": "images",
            "imports": ["$import bundle", "$import bundle.auditing.networks"],
            **options,
        }
    )
    return parser


def test_options_reach_the_attacks_and_name_the_folder_only_if_they_are_made() -> None:
    plain = {
        "dataset_dir": "images",
        "models_dir": "./models/xray",
        "cohort_preprocessing": "auto",
        "resolution": 128,
        "seed": 0,
    }
    parser = configured()
    assert parser.get_parsed_content("evaluator::deep") is None
    assert parser.get_parsed_content("output_dir") == default_audit_dir(parser["cohort"], plain)
    parser = configured(deep=True, n_shadows=4)
    settings = parser.get_parsed_content("evaluator::deep")
    assert settings == DeepSettings(n_shadows=4, models_dir="./models/xray")
    assert parser.get_parsed_content("output_dir") == default_audit_dir(parser["cohort"], plain | settings.plain())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("deep", "yes"),
        ("n_shadows", 1),
        ("shadow_resolution", 48),
        ("shadow_kimg", 0.0),
        ("shadow_samples", 5),
        ("shadow_discriminator", "none"),
        ("n_canaries", 19),
        ("inversion_images", 10),
        ("inversion_steps", 0),
        ("inversion_starts", 0),
    ],
)
def test_impossible_options_are_refused(option: str, value: Any) -> None:
    (problem,) = validate(COMMANDS["audit"], {option: value})
    assert problem.startswith(f"--{option} must be")
