# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""`generate --ends ksame` from end to end, on untrained networks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigParser
from torch import Tensor

import bundle
from bundle.cohort.judge import JudgePathd
from bundle.cohort.ledger import CohortError
from bundle.files import load_tensors
from bundle.latent.centroids import CentroidPairs
from bundle.latent.inverter import InversionError
from bundle.latent.ksalsa import KSalsa, KSalsaSettings
from bundle.latent.ksame import KSameInputError
from bundle.latent.real_latents import PARTS
from bundle.latent.training_clusters import TrainingClusters, open_clusters
from bundle.networks.model_set import load_models, read_infos
from bundle.options import OptionError
from tests.conftest import ROOT, cause, toy_latents
from tests.test_generate import digest, generate
from tests.training.conftest import Killed

NAMES = ["normal", "tuberculosis"]
#: 12 patients of the first class, and 8 of the second with two images each.
PATIENTS = [*(f"Zwingenberger{number}" for number in range(12)), *(f"Ypsilon{number // 2}" for number in range(16))]
LABELS = [0] * 12 + [1] * 16


@pytest.fixture(scope="module")
def latents(toy_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inversion") / "private" / "latents.pt"
    toy_latents(toy_models, path, PATIENTS, LABELS)
    return path


def between_centroids(models_dir: Path, latents: Any, output_dir: Path, **options: Any) -> None:
    """Runs the command as the command line does, with the default number of images and short walks."""
    file = str(latents) if isinstance(latents, Path) else latents
    given = {"ends": "ksame", "k": 2, "latents": file, "n_images": None, "walk_settings#steps": 5}
    generate(models_dir, output_dir, **{**given, **options})


@pytest.fixture(scope="module")
def cohort(toy_models: Path, latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's folder."""
    output_dir = tmp_path_factory.mktemp("run")
    between_centroids(toy_models, latents, output_dir)
    return output_dir


def manifest_of(output_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((output_dir / "cohort" / "manifest.json").read_text(encoding="utf-8"))
    return content


def clusters_of(models_dir: Path, latents: Path, k: int = 2) -> TrainingClusters:
    found = open_clusters("ksame", latents, k, read_infos(models_dir), NAMES)
    assert found is not None
    return found


def walked_ends(output_dir: Path, label: int) -> Tensor:
    """Ends of all walked pairs of a class, [pairs, 2, w_dim]."""
    files = sorted((output_dir / "private" / "walk").glob(f"pair_{label}_*.pt"))
    return torch.stack([load_tensors(path)["w"][[0, -1]] for path in files])


def test_cohort_has_as_many_images_of_each_class_as_the_training(cohort: Path, latents: Path) -> None:
    manifest = manifest_of(cohort)
    assert {name: counts["images"] for name, counts in manifest["gate"].items()} == {"normal": 12, "tuberculosis": 16}
    assert len(list((cohort / "cohort" / "images").iterdir())) == manifest["configuration"]["n_images"] == 28
    ksame = manifest["configuration"]["ksame"]
    assert len(ksame.pop("latents_sha256")) == 64
    assert ksame == {
        "k": 2,
        "method": "laca",
        "ksalsa": None,
        "images": {"normal": 12, "tuberculosis": 16},
        "centroids": {"normal": 6, "tuberculosis": 4},
        "fewest_patients": 4,
    }


def test_nobody_is_named_and_the_limit_is_told(cohort: Path) -> None:
    sheet = (cohort / "cohort" / "datasheet.md").read_text(encoding="utf-8")
    assert "at least 2 different patients of one class" in sheet
    assert "No k-anonymity of this cohort" in sheet
    for path in (cohort / "cohort").rglob("*"):
        if path.suffix in (".json", ".csv", ".md"):
            text = path.read_text(encoding="utf-8")
            assert "Zwingenberger" not in text
            assert "Ypsilon" not in text
            assert str(cohort) not in text


def test_ends_are_centroids_of_one_class_and_no_pair_comes_twice(cohort: Path, toy_models: Path, latents: Path) -> None:
    clusters = clusters_of(toy_models, latents)
    for label in (0, 1):
        centroids, ends = clusters.centroids(label), walked_ends(cohort, label)
        near = torch.cdist(ends.flatten(0, 1).double(), centroids.double())
        torch.testing.assert_close(near.amin(dim=1), torch.zeros(2 * len(ends)).double(), atol=1e-5, rtol=0)
        pairs = [frozenset(pair) for pair in near.argmin(dim=1).view(-1, 2).tolist()]
        assert len(set(pairs)) == len(pairs)
        assert all(len(pair) == 2 for pair in pairs)


def test_padding_of_the_last_block_is_not_kept(cohort: Path) -> None:
    """Four centroids have six pairs, a block 32."""
    assert len(walked_ends(cohort, 1)) == 6
    assert manifest_of(cohort)["gate"]["tuberculosis"]["judged"] == 18


def test_same_command_verifies_and_an_interrupted_one_resumes_to_the_same_bits(
    cohort: Path,
    toy_models: Path,
    latents: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    between_centroids(toy_models, latents, cohort)
    assert "is complete: 31 files" in capsys.readouterr().out
    judge, judged = JudgePathd.__call__, []

    def judge_some(self: JudgePathd, data: Any) -> dict[str, Any]:
        judged.append(data["index"])
        if len(judged) == 4:
            raise Killed
        return judge(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(JudgePathd, "__call__", judge_some)
        with pytest.raises(RuntimeError) as caught:
            between_centroids(toy_models, latents, tmp_path)
    assert isinstance(cause(caught.value), Killed)
    assert not (tmp_path / "cohort").exists()
    between_centroids(toy_models, latents, tmp_path)
    assert "normal: 12 patients in 6 clusters of 2 to 2" in capsys.readouterr().out
    assert digest(tmp_path / "cohort") == digest(cohort / "cohort")


def test_killed_k_salsa_moves_no_centroid_twice(
    toy_models: Path, latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few: dict[str, Any] = {"method": "ksalsa", "ksalsa#steps": 2, "n_images": 4}
    monkeypatch.setattr("bundle.latent.centroids.AT_ONCE", 3)
    moved: list[tuple[int, int]] = []
    move = KSalsa.__call__

    def counted(self: KSalsa, label: int, start: Tensor, *rest: Sequence[Tensor]) -> Tensor:
        moved.append((label, len(start)))
        if len(moved) == 3:
            raise Killed
        return move(self, label, start, *rest)

    monkeypatch.setattr(KSalsa, "__call__", counted)
    with pytest.raises(RuntimeError) as caught:
        between_centroids(toy_models, latents, tmp_path / "killed", **few)
    assert isinstance(cause(caught.value), Killed)
    assert not (tmp_path / "killed" / "cohort").exists()
    between_centroids(toy_models, latents, tmp_path / "killed", **few)
    assert moved == [(0, 3), (0, 3), (1, 3), (1, 3), (1, 1)]
    between_centroids(toy_models, latents, tmp_path / "whole", **few)
    assert digest(tmp_path / "killed" / "cohort") == digest(tmp_path / "whole" / "cohort")
    configuration = manifest_of(tmp_path / "whole")["configuration"]
    assert configuration["ksame"]["method"] == "ksalsa"
    assert configuration["ksame"]["ksalsa"]["steps"] == 2
    assert configuration["changed_configuration"] == {"ksalsa#steps": 2, "walk_settings#steps": 5}
    centroids = clusters_of(toy_models, latents).centroids(0)
    assert float(torch.cdist(walked_ends(tmp_path / "whole", 0).flatten(0, 1), centroids).amin()) > 1e-3


def test_other_processes_read_what_the_first_has_moved(
    toy_models: Path, latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = load_models(toy_models, names=("generator", "realism_guide"))
    arguments = (clusters_of(toy_models, latents), "ksalsa", KSalsaSettings(steps=1), models, tmp_path, 0)
    first, second = CentroidPairs(*arguments), CentroidPairs(*arguments)
    first.make()
    monkeypatch.setattr(KSalsa, "__call__", lambda *_: pytest.fail("moved again"))
    monkeypatch.setattr("ignite.distributed.get_rank", lambda: 1)
    second.make()
    assert torch.equal(second(range(20), 0), first(range(20), 0))


def test_pairs_depend_on_the_seed_and_begin_again_in_the_last_block(
    toy_models: Path, latents: Path, tmp_path: Path
) -> None:
    models = load_models(toy_models, names=("generator", "realism_guide"))
    ends = CentroidPairs(clusters_of(toy_models, latents), "laca", KSalsaSettings(), models, tmp_path, 0)
    ends.make()
    block = ends(range(16), 1)
    assert block.shape == (16, 2, 8)
    assert torch.equal(block[6:12], block[:6])
    assert torch.equal(ends([4], 1)[0], block[4])
    other = CentroidPairs(ends.clusters, "laca", KSalsaSettings(), models, tmp_path, 1)
    other.make()
    assert not torch.equal(other(range(6), 1), block[:6])
    assert not list(tmp_path.iterdir())


def refusal(models_dir: Path, file: Path, output_dir: Path, **options: Any) -> BaseException:
    """The error with which a run is refused before anything is written."""
    with pytest.raises(RuntimeError) as caught:
        between_centroids(models_dir, output_dir=output_dir, **{"latents": file, **options})
    assert not [path for path in output_dir.rglob("*") if path.is_file()]
    return cause(caught.value)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"k": 1}, OptionError, "--k must be at least 2, not 1. The nearest is 2."),
        ({"k": None}, OptionError, "--k must be given with --ends ksame: the smallest number of patients"),
        ({"ends": "draws"}, OptionError, "--k is an option of k-same: give --ends ksame as well"),
        ({"ends": "draws", "k": None}, OptionError, "--latents is an option of k-same"),
        ({"ends": "draws", "k": None, "latents": None, "method": "ksalsa"}, OptionError, "--method is an option of"),
        ({"latents": None}, OptionError, "--latents must be given with --ends ksame: the file private/latents.pt that"),
        ({"latents": 7}, OptionError, "--latents must be the path of a file"),
        ({"ends": "kasme"}, OptionError, "--ends must be one of draws, ksame, not 'kasme'. The nearest is ksame."),
        ({"method": "k-salsa"}, OptionError, "The nearest is ksalsa."),
        ({"ksalsa#steps": -1}, OptionError, "steps must be a whole number of at least 0, not -1"),
        ({"k": 7}, KSameInputError, "normal has 12 patients"),
        ({"k": 5}, KSameInputError, "tuberculosis has 8 patients"),
        ({"n_images": 40}, CohortError, "20 images of tuberculosis are wanted, but all paths between the 4 centroids"),
        (
            {"n_points": 3},
            CohortError,
            "16 images of tuberculosis are wanted, but all paths between the 4 centroids of that class have 6 inner",
        ),
        ({"n_images": 1}, CohortError, "1 images cannot show 2 classes"),
    ],
)
def test_what_k_same_cannot_do_is_refused_with_the_cure(
    toy_models: Path, latents: Path, tmp_path: Path, options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    error = refusal(toy_models, latents, tmp_path / "run", **options)
    assert isinstance(error, kind)
    assert words in str(error)


def test_unusable_latents_are_refused(toy_models: Path, latents: Path, tmp_path: Path) -> None:
    error = refusal(toy_models, tmp_path / "none.pt", tmp_path / "run")
    assert isinstance(error, InversionError)
    assert "none.pt does not exist. Invert the images with configs/invert.json" in str(error)
    (tmp_path / "private" / PARTS).mkdir(parents=True)
    error = refusal(toy_models, tmp_path / "private" / "latents.pt", tmp_path / "run")
    assert "its inversion was interrupted. Run the same command again" in str(error)
    toy_latents(toy_models, tmp_path / "other.pt", PATIENTS, LABELS, generator_sha256="1" * 64)
    assert "holds latents of another generator" in str(refusal(toy_models, tmp_path / "other.pt", tmp_path / "run"))


def test_other_latents_than_those_of_the_cohort_are_refused(cohort: Path, toy_models: Path, tmp_path: Path) -> None:
    toy_latents(toy_models, tmp_path / "latents.pt", PATIENTS, LABELS, settings={"steps": 4})
    before = digest(cohort / "cohort")
    with pytest.raises(RuntimeError) as caught:
        between_centroids(toy_models, tmp_path / "latents.pt", cohort)
    assert "was made with other options (ksame)" in str(cause(caught.value))
    assert digest(cohort / "cohort") == before


def test_what_the_gate_stops_is_told_with_what_can_be_made(
    toy_models: Path, latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One inner point of three passes: 6 of 18, where 12 were asked for."""
    judge = JudgePathd.__call__

    def judge_half(self: JudgePathd, data: Any) -> dict[str, Any]:
        gate = self.gate

        def half(images: Tensor, label: int) -> Any:
            verdict = gate(images, label)
            verdict.passed[:] = torch.arange(len(images)) > 2
            return verdict

        self.gate = half
        try:
            return judge(self, data)
        finally:
            self.gate = gate

    monkeypatch.setattr(JudgePathd, "__call__", judge_half)
    with pytest.raises(RuntimeError) as caught:
        between_centroids(toy_models, latents, tmp_path, n_images=12, classes="tuberculosis")
    message = str(cause(caught.value))
    assert message.startswith("All 6 paths between the centroids of tuberculosis are walked, and 6 of 12 images can be")
    assert not (tmp_path / "cohort").exists()


def test_draws_are_the_default_and_know_nothing_of_k_same(toy_models: Path) -> None:
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs" / "plan.json"))
    parser.update({"models_dir": str(toy_models), "device": "cpu"})
    content = parser.get_parsed_content("settings").content()
    assert content["n_images"] == 64
    assert "ksame" not in content
    assert parser.get_parsed_content("clusters") is None
    assert parser.get_parsed_content("ledger").quotas == {0: 32, 1: 32}
    assert parser.get_parsed_content("dataset").centroids is None
    assert not parser.get_parsed_content("inferer").ends_in_w


def test_from_images_to_a_cohort_by_two_commands(
    encoder_models: Path, tiny_dataset: Path, squeezenet_file: Path, tmp_path: Path
) -> None:
    monai.bundle.run(
        "invert",
        config_file=str(ROOT / "configs" / "invert.json"),
        bundle_root=str(ROOT),
        dataset_dir=str(tiny_dataset),
        models_dir=str(encoder_models),
        output_dir=str(tmp_path / "inversion"),
        squeezenet_file=str(squeezenet_file),
        device="cpu",
        steps=2,
    )
    made = bundle.generate(
        models_dir=encoder_models,
        output_dir=tmp_path / "run",
        ends="ksame",
        k=3,
        latents=tmp_path / "inversion" / "private" / "latents.pt",
        n_points=6,
        classes="tuberculosis",
        device="cpu",
    )
    ksame = made.manifest["configuration"]["ksame"]
    assert ksame["images"] == {"tuberculosis": 14}
    assert ksame["centroids"] == {"tuberculosis": 4}
    assert ksame["fewest_patients"] >= 6
    assert len(made) == 14
