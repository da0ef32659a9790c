# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The bar of the walk's identity term: measured on validation images, stored with the guide, and asked by the walk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bundle.data import open_dataset
from bundle.networks.classifiers import Classifier, Guide
from bundle.networks.model_set import read_infos
from bundle.networks.weights import WeightsError, load_weights
from bundle.training.errors import TrainingError
from bundle.training.strangers import add_stranger_divergence, stranger_divergence
from bundle.walk.guides import kappa_of
from bundle.walk.objective import identity_divergence
from tests.conftest import edit_info


def test_divergence_is_the_walks_median_over_strangers() -> None:
    torch.manual_seed(0)
    guide = Guide(1, 12, identity=True, width=0.125).eval()
    images = torch.rand(9, 1, 32, 32) * 2 - 1
    with torch.no_grad():
        wanted = identity_divergence(guide.closed_set(images)).median()
    assert wanted > 0
    assert stranger_divergence(guide, images, 0.5) == pytest.approx(float(wanted), rel=1e-5)


def test_a_set_of_an_earlier_version_gets_it(
    tiny_models: Path, tiny_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_models / "identity_guide.pt"
    edit_info(path, scores={"top1": 0.5})
    before = path.read_bytes()
    with pytest.raises(WeightsError, match=r"Add it with the run `strangers`"):
        kappa_of(read_infos(tiny_models, ("identity_guide",)))
    data = open_dataset(tiny_dataset, tiny_models.parent, resolution=32)
    add_stranger_divergence(data, tiny_models.parent)
    rows = [line.split("|")[1:3] for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    assert rows == [[" train ", " 28 "], [" val ", " 4 "], [" test ", " 8 "]]
    network, info = load_weights(path)
    assert isinstance(network, Classifier)
    value = stranger_divergence(network.eval(), data.tensors("val")[0], data.modality.stranger_quantile)
    assert info["scores"] == {"top1": 0.5, "stranger_divergence": pytest.approx(value)}
    assert kappa_of(read_infos(tiny_models, ("identity_guide",))) == pytest.approx(value)
    assert path.read_bytes() == before


def test_other_images_are_refused(tiny_models: Path, tiny_dataset: Path) -> None:
    before = json.loads((tiny_models / "identity_guide.json").read_text(encoding="utf-8"))
    with pytest.raises(TrainingError, match=r"other images \(resolution differ"):
        add_stranger_divergence(open_dataset(tiny_dataset, tiny_models.parent, resolution=64), tiny_models.parent)
    assert json.loads((tiny_models / "identity_guide.json").read_text(encoding="utf-8")) == before
