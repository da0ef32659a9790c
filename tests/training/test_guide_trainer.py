# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from PIL import Image
from torch import Tensor

from bundle.data import ImageData, get_modality, open_dataset
from bundle.metrics.recognition import (
    UNSEEN_CHANGES,
    highest_probability,
    predict,
    recognition_threshold,
)
from bundle.networks.classifiers import GateClassifier, Guide, NobodyHead
from bundle.networks.weights import UnsealedError, WeightsError, load_weights
from bundle.training.checkpoint import CheckpointError
from bundle.training.classifier_augment import GUIDE_CHANGES
from bundle.training.errors import TrainingError
from bundle.training.gradients import DivergedError
from bundle.training.guide_trainer import (
    ROLES,
    GuideTrainer,
    calibrate_head,
    class_scores,
    new_classifier,
)
from bundle.training.init_from import initialise_classifier
from bundle.training.memory import TooLittleMemory
from tests.training.conftest import KillAt, Killed

ROOT = Path(__file__).resolve().parents[2]
SPLITS = ["train"] * 6 + ["val"] * 6 + ["test"] * 6


def draw_patient(number: int) -> Image.Image:
    """Soft blobs at places that differ from patient to patient."""
    coarse = np.random.default_rng(number).integers(30, 226, (6, 6), dtype=np.uint8)
    return Image.fromarray(coarse).resize((40, 40), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patients")
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["image", "label", "patient_id", "split"])
        for number, split in enumerate(SPLITS * 2):
            draw_patient(number).save(folder / f"{number:02d}.png")
            rows.writerow([f"{number:02d}.png", number // len(SPLITS), f"patient{number}", split])
    return folder


@pytest.fixture
def data(dataset_dir: Path, tmp_path: Path) -> ImageData:
    return open_dataset(dataset_dir, tmp_path / "out", resolution=32)


def make_trainer(data: ImageData, output_dir: Path, name: str = "gate_identity", **options: Any) -> GuideTrainer:
    options = {"max_epochs": 2, "batch_size": 4, "checkpoint_epochs": 1, **options}
    dataset = data.dataset(ROLES[name].splits)
    network = new_classifier(name, data, options.get("seed", 0), init_from=options.get("init_from"))
    return GuideTrainer(name, data, dataset, network, output_dir, "cpu", **options)


@pytest.mark.parametrize("name", sorted(ROLES))
def test_classifiers_of_diagnoses_start_from_imagenet_weights_where_the_modality_says_so(
    name: str, dataset_dir: Path, resnet_file: Path, squeezenet_file: Path, tmp_path: Path
) -> None:
    modality = replace(get_modality("xray"), pretrained=True)
    data = open_dataset(dataset_dir, tmp_path, modality, resolution=32)
    role = ROLES[name]
    file = {"resnet18": resnet_file, "squeezenet1_1": squeezenet_file, "": None}[role.trunk]
    network = new_classifier(name, data, 0, file)
    if role.identity:
        assert isinstance(network, role.network)
        return
    key = {"resnet18": "conv1.weight", "squeezenet1_1": "features.0.weight"}[role.trunk]
    assert file is not None
    assert torch.equal(network.trunk.state_dict()[key], torch.load(file, weights_only=True)[key])
    trainer = GuideTrainer(name, data, data.dataset(role.splits), network, tmp_path, "cpu", max_epochs=1, batch_size=4)
    trainer.run()
    assert load_weights(tmp_path / "models" / f"{name}.pt")[1]["network"] == "ImageNetClassifier"


@pytest.mark.parametrize("name", sorted(ROLES))
def test_training_starts_from_earlier_weights(name: str, data: ImageData, tmp_path: Path) -> None:
    make_trainer(data, tmp_path, name).run()
    source, info = load_weights(tmp_path / "models" / f"{name}.pt")
    network = new_classifier(name, data, 0, init_from=tmp_path / "models")
    for key, value in network.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key
    trainer = make_trainer(data, tmp_path / "on", name, init_from=tmp_path / "models")
    assert trainer.settings["init_from_sha256"] == info["sha256"]


def test_start_from_other_patients_leaves_the_head_random(data: ImageData, tmp_path: Path) -> None:
    make_trainer(data, tmp_path).run()
    path = tmp_path / "models" / "gate_identity.pt"
    source, _ = load_weights(path)
    network = GateClassifier(1, 3, identity=True)
    head = network.head.weight.clone()
    initialise_classifier(network, path)
    assert torch.equal(network.head.weight, head)
    assert isinstance(source, GateClassifier)
    given = source.trunk.state_dict()
    assert all(torch.equal(value, given[key]) for key, value in network.trunk.state_dict().items())
    with pytest.raises(WeightsError, match="cannot start Guide"):
        initialise_classifier(Guide(1, 3, identity=True), path)
    with pytest.raises(WeightsError, match="cannot start GateClassifier"):
        initialise_classifier(GateClassifier(3, 3, identity=True), path)


def test_guide_and_gate_never_share_a_trunk() -> None:
    trunks = [role.trunk for role in ROLES.values() if not role.identity]
    assert len(trunks) == len(set(trunks)) == 2


@pytest.mark.parametrize("name", sorted(ROLES))
def test_resumed_run_gives_the_same_bits(name: str, data: ImageData, tmp_path: Path) -> None:
    make_trainer(data, tmp_path / "whole", name).run()
    # 12 images in batches of 4: three iterations an epoch, so the second epoch is broken off in its middle.
    with pytest.raises(Killed):
        make_trainer(data, tmp_path / "killed", name, train_handlers=[KillAt(5)]).run()
    assert not (tmp_path / "killed" / "models" / f"{name}.json").exists()
    resumed = make_trainer(data, tmp_path / "killed", name)
    assert resumed.state.iteration == 3
    resumed.run()
    first, again = (load_weights(tmp_path / run / "models" / f"{name}.pt") for run in ("whole", "killed"))
    assert first[1]["scores"] == again[1]["scores"]
    for key, value in first[0].state_dict().items():
        assert torch.equal(value, again[0].state_dict()[key]), key
    # All that is left of the checkpoint are the finished weights.
    kept = torch.load(tmp_path / "killed" / "checkpoints" / f"{name}.pt", weights_only=True)["trainer"]
    assert set(kept) == {"saved"}


def test_gradient_that_is_no_number_ends_a_run_that_can_still_go_on(data: ImageData, tmp_path: Path) -> None:
    def spoil(gradient: Tensor) -> Tensor:
        return gradient * torch.nan if trainer.state.iteration == 4 else gradient

    make_trainer(data, tmp_path / "whole").run()
    trainer = make_trainer(data, tmp_path / "spoilt")
    next(trainer.network.parameters()).register_hook(spoil)
    with pytest.raises(DivergedError, match=r"The gradient of gate_identity is nan in iteration 4: .* lower one"):
        trainer.run()
    again = make_trainer(data, tmp_path / "spoilt")
    assert again.state.iteration == 3
    again.run()
    first, second = (load_weights(tmp_path / run / "models" / "gate_identity.pt")[0] for run in ("whole", "spoilt"))
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def test_run_killed_before_its_weights_were_written_writes_them(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(data, tmp_path, max_epochs=1)

    def kill() -> dict[str, Any]:
        raise Killed

    monkeypatch.setattr(trainer, "save", kill)
    with pytest.raises(Killed):
        trainer.run()
    again = make_trainer(data, tmp_path, max_epochs=1)
    again.run()
    assert again.is_saved
    assert load_weights(tmp_path / "models" / "gate_identity.pt")[1]["epochs"] == 1


def test_finished_classifier_is_checked_and_not_trained_again(data: ImageData, tmp_path: Path) -> None:
    make_trainer(data, tmp_path, max_epochs=1).run()
    path = tmp_path / "models" / "gate_identity.pt"
    before = path.stat().st_mtime_ns
    make_trainer(data, tmp_path, max_epochs=1, train_handlers=[KillAt(1)]).run()
    assert path.stat().st_mtime_ns == before
    with pytest.raises(TrainingError, match=r"max_epochs = 1, now it is 3.*another output_dir"):
        make_trainer(data, tmp_path, max_epochs=3)
    with pytest.raises(
        TrainingError, match=r"learning_rate = 0\.002, now it is 0\.1; max_epochs = 1, now it is 3\. .*values"
    ):
        make_trainer(data, tmp_path, max_epochs=3, learning_rate=0.1)


def spoil(path: Path, damage: str) -> None:
    """Damages a pair of files."""
    json_path = path.with_suffix(".json")
    if damage in ("both deleted", "weights deleted"):
        path.unlink()
    if damage in ("both deleted", "json deleted"):
        json_path.unlink()
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    if damage == "edited":
        json_path.write_text(json_path.read_text().replace('"threshold": ', '"threshold": 0.1'))
    if damage == "not json":
        json_path.write_text("[")


DAMAGES = ["both deleted", "weights deleted", "json deleted", "truncated", "edited", "not json"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_weights_of_a_finished_training_come_back_from_its_checkpoint(
    damage: str, data: ImageData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_trainer(data, tmp_path, max_epochs=1).run()
    path = tmp_path / "models" / "gate_identity.pt"
    before = {suffix: path.with_suffix(suffix).read_bytes() for suffix in (".pt", ".json")}
    spoil(path, damage)
    make_trainer(data, tmp_path, max_epochs=1, train_handlers=[KillAt(1)]).run()
    shown = capsys.readouterr().out
    assert f"{path} was absent or damaged; {tmp_path / 'checkpoints' / 'gate_identity.pt'} had it." in shown
    assert {suffix: path.with_suffix(suffix).read_bytes() for suffix in before} == before


def test_damaged_weights_that_no_checkpoint_has_are_told_with_the_cure(data: ImageData, tmp_path: Path) -> None:
    make_trainer(data, tmp_path, max_epochs=1).run()
    (tmp_path / "checkpoints" / "gate_identity.pt").unlink()
    path = tmp_path / "models" / "gate_identity.pt"
    spoil(path, "truncated")
    with pytest.raises(TrainingError, match=r"SHA-256.* Or remove .*gate_identity\.json to train the network anew"):
        make_trainer(data, tmp_path, max_epochs=1)
    path.with_suffix(".json").unlink()
    make_trainer(data, tmp_path, max_epochs=1).run()
    load_weights(path)


def test_weights_of_an_earlier_version_are_not_trained_over(data: ImageData, tmp_path: Path) -> None:
    make_trainer(data, tmp_path, max_epochs=1).run()
    path = tmp_path / "models" / "gate_identity.json"
    info = json.loads(path.read_text())
    del info["json_sha256"]
    path.write_text(json.dumps(info))
    with pytest.raises(UnsealedError, match=r"scripts\.seal"):
        make_trainer(data, tmp_path, max_epochs=1)


def test_finished_weights_of_other_options_are_not_restored(data: ImageData, tmp_path: Path) -> None:
    make_trainer(data, tmp_path, max_epochs=1).run()
    spoil(tmp_path / "models" / "gate_identity.pt", "both deleted")
    with pytest.raises(
        CheckpointError, match=r"learning_rate = 0\.002, now it is 0\.001\. Give the old value to resume"
    ):
        make_trainer(data, tmp_path, max_epochs=1, learning_rate=1e-3)


def test_lack_of_memory_is_told_with_the_cure(data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB.")

    trainer = make_trainer(data, tmp_path)
    monkeypatch.setattr(trainer, "_iteration", no_memory)
    trainer._process_function = no_memory  # what Ignite calls
    with pytest.raises(TooLittleMemory) as caught:
        trainer.run()
    assert str(caught.value).startswith("The training of gate_identity ran out of memory. Give a smaller batch_size")
    assert "\n" not in str(caught.value)


def test_checkpoint_of_other_options_is_refused(data: ImageData, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        make_trainer(data, tmp_path, train_handlers=[KillAt(5)]).run()
    with pytest.raises(CheckpointError, match="learning_rate"):
        make_trainer(data, tmp_path, learning_rate=1e-3)


def test_classifiers_of_one_set_start_apart_and_the_same_every_time(data: ImageData) -> None:
    one, again, other = (new_classifier("class_guide", data, seed) for seed in (0, 0, 1))
    assert torch.equal(one.head.weight, again.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)
    assert type(new_classifier("gate_class", data, 0)) is not type(one)
    assert isinstance(new_classifier("identity_guide", data, 0).head, NobodyHead)
    assert new_classifier("identity_guide", data, 0).num_classes == 12


def test_identity_network_knows_its_patients_and_says_nobody_to_others(data: ImageData, tmp_path: Path) -> None:
    # The smaller of the two networks: the head and the training are the same.
    trainer = make_trainer(data, tmp_path, max_epochs=220, batch_size=12)
    trainer.run()
    network, info = load_weights(tmp_path / "models" / "gate_identity.pt")
    scores = info["scores"]
    assert scores["top1"] >= 0.7  # chance is 0.08
    assert scores["highest_probability"]["train"] > 2 * scores["highest_probability"]["val"]
    assert scores["identity_divergence"]["train"] > 2 * scores["identity_divergence"]["test"]
    assert scores["sensitivity"]["train"] >= 0.7  # of strangers 0.05, by the threshold's making
    assert info["split_sha256"] == data.split_sha256
    val = predict(network, data.tensors("val")[0])
    assert scores["threshold"] == pytest.approx(recognition_threshold(val), abs=0.02)
    assert (highest_probability(val) > scores["threshold"]).float().mean() <= 0.25


def test_calibration_lowers_its_loss_and_keeps_the_order_of_the_identities() -> None:
    torch.manual_seed(0)
    network = Guide(1, 6, identity=True, width=0.25).eval()
    head = network.head
    assert isinstance(head, NobodyHead)
    images = torch.rand(18, 1, 32, 32) * 2 - 1
    # The first twelve images are made the prototypes' own: known patients, two images each.
    with torch.no_grad():
        head.weight.copy_(network.features(images[:6]) + 0.1 * torch.randn(6, 512 // 4))
        head.scale.fill_(200.0)
    known, identities = images[:6], torch.arange(6)
    before = predict(network, images).argmax(dim=1)
    report = calibrate_head(network, known, identities, images[6:])
    assert report["loss_after"] < report["loss_before"]
    assert report["scale"] == pytest.approx(head.scale.item())
    assert torch.equal(predict(network, images).argmax(dim=1)[:6], before[:6])
    with pytest.raises(TypeError, match="identity"):
        calibrate_head(Guide(1, 6, width=0.25).eval(), known, identities, images[6:])


def test_calibration_is_in_fp32_as_the_gate_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    images = torch.rand(12, 1, 32, 32) * 2 - 1
    network = GateClassifier(1, 6, identity=True).eval()
    reports = []
    for bf16 in (True, False):
        monkeypatch.setattr("bundle.precision.computes_in_bf16", lambda device, bf16=bf16: bf16)
        reports.append(calibrate_head(copy.deepcopy(network), images[:6], torch.arange(6), images[6:]))
    assert reports[0] == reports[1]


def test_class_scores_of_a_hand_computed_case() -> None:
    class Pixel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = torch.nn.Parameter(torch.tensor(4.0))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            value = self.gain * image[:, 0, 0, 0]
            return torch.stack([-value, value], dim=1)

    images = torch.tensor([-0.5, -0.25, 0.25, 0.5, 0.75]).view(5, 1, 1, 1)
    scores = class_scores(Pixel(), images, torch.tensor([0, 0, 0, 1, 1]))
    assert scores["accuracy"] == pytest.approx(4 / 5)
    assert scores["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["auc"] == 1.0
    assert "auc" not in class_scores(Pixel(), images[:3], torch.tensor([0, 0, 0]))
    assert "kappa" not in scores
    # Of two classes, one answer in five differs, where chance would let 0.6 * 0.6 + 0.4 * 0.4 of them differ.
    graded = class_scores(Pixel(), images, torch.tensor([0, 0, 0, 1, 1]), ordered=True)
    assert graded["kappa"] == pytest.approx(1 - 0.2 / 0.52)


def test_unseen_changes_are_other_families_than_the_guides_train_on_or_stronger() -> None:
    # "Beyond" changes belong to a family that training knows: the number in the name must exceed the trained one.
    trained = dict(GUIDE_CHANGES)
    beyond = {name: change for name, change in UNSEEN_CHANGES.items() if name.endswith("(beyond)")}
    strength = {name: float(re.findall(r"\d+(?:\.\d+)?", name)[0]) for name in beyond}
    for name, value in strength.items():
        match name.split()[0]:
            case "rotation":
                assert value > trained["rotation"]
            case "shift":
                assert value / 100 > trained["shift"]
            case "enlarged":
                assert value > trained["scale"]
            case "reduced":
                assert value < 1 / trained["scale"]
            case "noise":
                assert value > trained["noise"]
            case "contrast":
                assert value < 1 / trained["contrast"]
            case "brightness":
                assert value > trained["brightness"]
            case family:
                pytest.fail(f"{family} is not among the families that training knows")
    for name in UNSEEN_CHANGES.keys() - beyond.keys():
        assert not any(family in name.lower() for family in trained), name
    assert len(UNSEEN_CHANGES) - len(beyond) >= 5


def workflow(dataset_dir: Path, output_dir: Path, resnet_file: Path) -> ConfigWorkflow:
    return ConfigWorkflow(
        str(ROOT / "configs" / "train_guides.json"),
        meta_file=None,
        logging_file=False,
        workflow_type="train",
        dataset_dir=str(dataset_dir),
        output_dir=str(output_dir),
        resnet18_file=str(resnet_file),
        resolution=32,
        max_epochs=1,
        batch_size=4,
        bundle_root=str(ROOT),
    )


def test_configuration_has_the_properties_of_a_training_bundle_and_trains_all_networks(
    dataset_dir: Path, resnet_file: Path, tmp_path: Path
) -> None:
    first = workflow(dataset_dir, tmp_path, resnet_file)
    first.initialize()
    required = {"bundle_root", "device", "dataset_dir", "trainer", "max_epochs", "train_dataset", "train_inferer"}
    assert not required & set(first.check_properties() or [])
    first.run()
    infos = {name: load_weights(tmp_path / "models" / f"{name}.pt")[1] for name in ROLES}
    assert {info["network"] for name, info in infos.items() if name.startswith("gate")} == {"GateClassifier"}
    assert {info["network"] for name, info in infos.items() if name.endswith("guide")} == {"Guide"}
    assert len({info["split_sha256"] for info in infos.values()}) == 1
    assert infos["gate_identity"]["scores"]["threshold"] > 0
    realism = load_weights(tmp_path / "models" / "gate_realism.pt")[1]
    assert realism["network"] == "RealismJudge"
    assert realism["split_sha256"] == infos["gate_identity"]["split_sha256"]
    infos["gate_realism"] = realism
    assert {"train", "val", "test"} == infos["class_guide"]["scores"].keys()
    text = json.dumps(infos)
    assert ".png" not in text
    assert "patient" not in text
    again = workflow(dataset_dir, tmp_path, resnet_file)
    again.initialize()
    before = (tmp_path / "models" / "class_guide.pt").stat().st_mtime_ns
    again.run()
    assert (tmp_path / "models" / "class_guide.pt").stat().st_mtime_ns == before


@pytest.mark.parametrize(("modality", "epochs", "rate"), [("xray", 25, 0.002), ("fundus", 60, 0.0003)])
def test_classifiers_of_diagnoses_train_as_their_modality_says(modality: str, epochs: int, rate: float) -> None:
    parser = ConfigParser()
    parser.read_config(ROOT / "configs" / "train_guides.json")
    parser["data"] = {"_target_": "types.SimpleNamespace", "modality": get_modality(modality)}
    assert parser.get_parsed_content("class_epochs") == epochs
    assert parser.get_parsed_content("class_learning_rate") == pytest.approx(rate)


@pytest.mark.parametrize(("modality", "folders"), [("xray", ["cxr"]), ("fundus", ["fundus", "fundus_extra"])])
def test_shipped_guide_names_training_images_under_unseen_changes(
    modality: str, folders: list[str], shared_data: Path, tmp_path: Path
) -> None:
    weights = ROOT / "models" / modality / "identity_guide.pt"
    if not weights.is_file():
        pytest.skip(f"needs {weights}, which this checkout does not have")
    network, info = load_weights(weights)
    homes = [shared_data / folder for folder in folders]
    data = open_dataset(homes, tmp_path, modality, resolution=info["resolution"])
    if data.split_sha256 != info["split_sha256"]:
        pytest.skip("the shipped guide was trained on other splits than those of the images that are here")
    images, _, identities = data.tensors(("train", "extra"))
    some = torch.arange(0, len(images), 24)
    hits = [
        (predict(network, change(images[some]).clamp(-1, 1)).argmax(dim=1) == identities[some]).float().mean()
        for change in UNSEEN_CHANGES.values()
    ]
    assert torch.stack(hits).mean() >= 0.9


@pytest.mark.parametrize("seed", range(4))
def test_calibration_stays_in_its_range_where_no_image_is_like_another(seed: int) -> None:
    torch.manual_seed(seed)
    network = Guide(1, 12, identity=True, width=0.125).eval()
    before = network.head.state_dict()["scale"].clone()
    scores = calibrate_head(network, torch.randn(12, 1, 32, 32), torch.arange(12), torch.randn(6, 1, 32, 32))
    assert all(math.isfinite(value) for value in scores.values())
    assert scores["loss_after"] <= scores["loss_before"]
    assert 1.0 < scores["scale"] < 1000.0
    assert -1.0 <= scores["nobody_cosine"] <= 1.0
    assert float(network.head.state_dict()["scale"]) != float(before)
