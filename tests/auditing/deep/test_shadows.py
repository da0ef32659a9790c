# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Shadow generators, trained by the configuration of train_gan."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import bundle.auditing.deep.shadows
from bundle.auditing.deep.lira import fit, log_likelihood_ratio, standardised
from bundle.auditing.deep.scores import Scorer, smaller
from bundle.auditing.deep.settings import DeepSettings
from bundle.auditing.deep.shadows import MEMORISE, Pool, ShadowImages, train_shadow
from bundle.auditing.measures import area_under_curve
from bundle.data import get_modality
from bundle.networks.embeddings import ContrastiveEmbedding
from bundle.networks.weights import WeightsError
from tests.conftest import ROOT
from tests.hospital import blobs, write_tiny_recipe


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A bundle without models, whose GANs are tiny and hardly measured."""
    root = tmp_path / "bundle"
    (root / "configs").mkdir(parents=True)
    for name in ("metadata.json", "logging.conf"):
        shutil.copyfile(ROOT / "configs" / name, root / "configs" / name)
    write_tiny_recipe(root / "configs" / "train_gan.json")
    return root


def pool(first: int, n: int) -> Pool:
    """Blobs of 32 px, one image of each patient, of two classes."""
    pixels = torch.stack([torch.tensor(blobs(number)[4:36, 4:36]) for number in range(first, first + n)])
    return Pool(pixels, torch.arange(n) % 2, torch.arange(n))


def settings(root: Path, squeezenet_file: Path, kimg: float) -> DeepSettings:
    return DeepSettings(
        shadow_resolution=32,
        shadow_kimg=kimg,
        shadow_discriminator="residual",
        bundle_root=str(root),
        squeezenet_file=str(squeezenet_file),
    )


def images(train: Pool) -> ShadowImages:
    return ShadowImages(train, pool(900, 8), get_modality("xray"), ("normal", "tuberculosis"))


def test_shadow_is_trained_once_for_the_same_images_and_recipe(
    root: Path, squeezenet_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = settings(root, squeezenet_file, 0.016)
    generator = train_shadow(images(pool(0, 12)), options, 1, "cpu")
    (home,) = (root / "output" / "shadows").iterdir()
    assert home.stat().st_mode & 0o077 == 0
    assert not (home / "checkpoints").exists()
    runs: list[dict[str, Any]] = []
    monkeypatch.setattr(bundle.auditing.deep.shadows.monai.bundle, "run", lambda **given: runs.append(given))
    again = train_shadow(images(pool(0, 12)), options, 1, "cpu")
    assert not runs
    for name, value in generator.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    for other, seed in ((pool(1, 12), 1), (pool(0, 12), 2)):
        with pytest.raises((WeightsError, FileNotFoundError)):  # a training that does nothing leaves no weights
            train_shadow(images(other), options, seed, "cpu")
    assert len(runs) == 2
    assert len({run["output_dir"] for run in runs} | {str(home)}) == 3


def test_weights_of_other_images_are_refused(root: Path, squeezenet_file: Path) -> None:
    options = settings(root, squeezenet_file, 0.016)
    train_shadow(images(pool(0, 12)), options, 1, "cpu")
    (home,) = (root / "output" / "shadows").iterdir()
    train_shadow(images(pool(1, 12)), options, 1, "cpu")
    (other,) = set((root / "output" / "shadows").iterdir()) - {home}
    shutil.rmtree(home / "models")
    shutil.copytree(other / "models", home / "models")
    with pytest.raises(WeightsError, match="does not hold what its name says"):
        train_shadow(images(pool(0, 12)), options, 1, "cpu")


def test_images_that_are_named_several_times_are_trained_on_several_times() -> None:
    mine = images(pool(0, 4).part(torch.tensor([0, 1, 1, 1])))
    assert len(mine.records(("train", "extra"))) == len(mine.dataset(("train", "extra"))) == 4
    assert mine.n_identities == 2
    assert str(mine) != str(images(pool(0, 4).part(torch.tensor([0, 1]))))
    assert mine.tensors("val")[0].shape == (8, 1, 32, 32)


def test_large_samples_are_made_smaller_and_others_are_not() -> None:
    image: Tensor = torch.rand(2, 1, 64, 64)
    assert smaller(image, 32).shape == (2, 1, 32, 32)
    assert smaller(image, 64) is image


def test_generator_that_memorises_is_found(root: Path, squeezenet_file: Path) -> None:
    """The attack from end to end: few members, no augmentation, two shadows that were hardly trained."""
    everyone = pool(0, 50)
    torch.manual_seed(0)
    embedding = ContrastiveEmbedding(1, side=32, widths=(4, 8), dimension=8).eval()
    scorer = Scorer(everyone.pixels, embedding, 64, 0, squeezenet_file, "cpu")
    points = scorer.describe()
    member = torch.zeros(3, 50, dtype=torch.bool)
    member[0, 10:30], member[1, 30:], member[2, :10] = True, True, True
    scores = []
    for number, (kimg, changes) in enumerate([(0.04, {}), (0.04, {}), (2.0, MEMORISE | {"learning_rate": 0.005})]):
        mine = images(everyone.part(member[number].nonzero()[:, 0]))
        generator = train_shadow(mine, settings(root, squeezenet_file, kimg), number, "cpu", changes)
        scores.append(scorer.score(generator, points))
    found = {}
    for space in ("features", "lpips", "pixels"):
        rows = standardised(torch.stack([score[space] for score in scores]))
        ratio = log_likelihood_ratio(rows[2], fit(rows[:2], member[:2]))
        found[space] = area_under_curve(ratio[member[2]], ratio[~member[2]])
    assert min(found.values()) > 0.7, found
