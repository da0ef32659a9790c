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
from bundle.auditing.deep.findings import ratios
from bundle.auditing.deep.scores import SPACES, Scorer, smaller
from bundle.auditing.deep.settings import DeepSettings
from bundle.auditing.deep.shadows import Pool, ShadowImages, train_shadow
from bundle.auditing.measures import area_under_curve
from bundle.data import get_modality
from bundle.figures import from_uint8
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


def homes(root: Path) -> set[Path]:
    return {path.parent for path in (root / "output" / "shadows").glob("*/complete.json")}


def images(train: Pool) -> ShadowImages:
    return ShadowImages(train, pool(900, 8), get_modality("xray"), ("normal", "tuberculosis"))


def test_shadow_is_trained_once_for_the_same_images_and_recipe(
    root: Path, squeezenet_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = settings(root, squeezenet_file, 0.016)
    generator = train_shadow(images(pool(0, 12)), options, 1, "cpu")
    (home,) = homes(root)
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
    (home,) = homes(root)
    train_shadow(images(pool(1, 12)), options, 1, "cpu")
    (other,) = homes(root) - {home}
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


class Showing(torch.nn.Module):
    """In the place of a generator: shows what it was trained on, more or less blurred by noise."""

    z_dim, num_classes = 16, 2

    def __init__(self, members: Tensor, noise: float) -> None:
        super().__init__()
        self.members = torch.nn.Parameter(members)
        self.noise = noise

    def mapping(self, z: Tensor, label: Tensor) -> Tensor:
        return z

    def synthesis(self, w: Tensor) -> Tensor:
        place = torch.distributions.Normal(0.0, 1.0).cdf(w[:, 0]) * len(self.members)
        bent = torch.nn.functional.interpolate(w[:, 1:].view(-1, 1, 3, 5), size=(32, 32), mode="bilinear")
        return (self.members[place.long()] + self.noise * bent).clamp(-1.0, 1.0)


def attacked(noise: float, squeezenet_file: Path) -> dict[str, float]:
    """AUC of the attack on a generator of 10 members by two shadows that show theirs faintly, by space."""
    everyone = pool(0, 60)
    torch.manual_seed(0)
    embedding = ContrastiveEmbedding(1, side=32, widths=(4, 8), dimension=8).eval()
    scorer = Scorer(everyone.pixels, embedding, 64, 0, squeezenet_file, "cpu")
    points = scorer.describe()
    member = torch.zeros(3, 60, dtype=torch.bool)
    member[0, 10:40], member[1, 35:], member[2, :10] = True, True, True
    shown = [Showing(from_uint8(everyone.pixels[row]), x) for row, x in zip(member, (0.5, 0.5, noise), strict=True)]
    scores = [scorer.score(one, points) for one in shown]  # type: ignore[arg-type]
    shadows = {space: torch.stack([score[space] for score in scores[:2]]) for space in SPACES}
    found = ratios(shadows, member[:2], scores[2])
    return {space: area_under_curve(value[member[2]], value[~member[2]]) for space, value in found.items()}


def test_generator_that_memorises_is_found_and_one_that_shows_noise_is_not(squeezenet_file: Path) -> None:
    found = attacked(0.05, squeezenet_file)
    assert min(found["lpips"], found["pixels"]) > 0.9, found
    assert found["features"] > 0.6  # of random weights
    assert attacked(10.0, squeezenet_file)["pixels"] < 0.8
