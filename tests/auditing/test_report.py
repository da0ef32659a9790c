# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from bundle.auditing.reference import EMBEDDING
from bundle.auditing.report import write_private
from bundle.auditing.single_images import SingleImages
from bundle.data.records import Record


def test_names_in_the_private_table_are_no_formulas_and_break_no_picture(tmp_path: Path) -> None:
    synthetic = [Record(Path("x.png"), name, 0, name) for name in ("=1+1.png", "a\nb.png")]
    real = [Record(Path("y.png"), "@y.png", 0, "-1+2")]
    distances: Any = SimpleNamespace(
        reference=SimpleNamespace(
            points={EMBEDDING: {"val_correlation": torch.rand(20), "test_correlation": torch.rand(20)}}
        ),
        rows={
            "correlation": torch.tensor([0.5, -0.25]),
            "index": torch.zeros(2, dtype=torch.int64),
            "verified_index": torch.zeros(2, dtype=torch.int64),
        },
        found={
            **{name: torch.tensor([0.5, 0.25]) for name in ("part", "whole", "aligned")},
            **{f"{name}_index": torch.zeros(2, dtype=torch.int64) for name in ("part", "whole", "aligned")},
        },
        real={
            "val": SimpleNamespace(records=[]),
            "test": SimpleNamespace(records=[]),
            "train": SimpleNamespace(records=real, pixels=torch.zeros(1, 32, 32, dtype=torch.uint8)),
        },
        cohort=torch.zeros(2, 32, 32, dtype=torch.uint8),
        lpips_to_train=lambda: torch.rand(2),
    )
    cohort: Any = SimpleNamespace(records=synthetic, releases=((Path("/a"), 2, "", None),))
    single = SingleImages({}, torch.tensor([False, True]), {})
    rules = {"transformed": torch.tensor([False, True]), "single image": torch.tensor([False, True])}
    write_private(tmp_path / "private", distances, cohort, single, rules)
    assert (tmp_path / "private" / "releases.json").read_text(encoding="utf-8").split() == ["{", '"1":', '"/a"', "}"]
    with (tmp_path / "private" / "nearest.csv").open(newline="", encoding="utf-8") as stream:
        second, first = csv.DictReader(stream)  # the flagged image comes first
    assert (first["image"], first["nearest_real_image"], first["patient_id"]) == ("'=1+1.png", "'@y.png", "'-1+2")
    assert (second["image"], second["correlation"], second["stopped_as"]) == (
        "a\nb.png",
        "-0.2500",
        "transformed; single image",
    )
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "private").iterdir()} == {0o600}
