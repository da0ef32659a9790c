# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import monai.bundle
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.data import Dataset
from monai.engines.utils import IterationEvents
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bundle.networks.projected import ProjectedDiscriminator
from bundle.networks.weights import load_weights
from bundle.training import best_generator, samples
from bundle.training.augment import AdaptiveAugment
from bundle.training.checkpoint import CheckpointError
from bundle.training.gradients import DivergedError
from bundle.training.info import weights_info
from bundle.training.losses import lazy_adam
from bundle.training.stylegan2_trainer import (
    StyleGAN2Trainer,
    balanced_loader,
    default_r1_gamma,
    prepare_gan_batch,
)
from tests.conftest import ROOT
from tests.training.conftest import NewTrainer


def assert_same_bits(left: Any, right: Any, where: str = "state") -> None:
    assert type(left) is type(right), where
    if isinstance(left, Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same_bits(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_same_bits(one, other, f"{where}.{index}")
    else:
        assert left == right, where


def test_r1_gamma_heuristic() -> None:
    assert default_r1_gamma(64, 32) == pytest.approx(0.0002 * 64 * 64 / 32)


def test_batches_become_plain_tensors() -> None:
    images, labels = prepare_gan_batch(
        {"image": torch.zeros(2, 1, 4, 4).double(), "label": [0, 1]}, torch.device("cpu")
    )
    assert images.dtype == torch.float32
    assert labels.tolist() == [0, 1]
    assert labels.dtype == torch.int64


def test_loader_of_another_kind_is_refused(new_trainer: NewTrainer) -> None:
    data = Dataset([{"image": torch.zeros(1, 32, 32), "label": 0}])
    with pytest.raises(TypeError, match="balanced_loader"):
        new_trainer(train_data_loader=DataLoader(data, batch_size=1))


def test_output_of_an_iteration(new_trainer: NewTrainer) -> None:
    trainer = new_trainer(max_epochs=1, epoch_length=1)
    completed: list[int] = []
    trainer.add_event_handler(IterationEvents.MODEL_COMPLETED, lambda: completed.append(trainer.state.iteration))
    trainer.run()
    output = trainer.state.output
    assert output["reals"].shape == output["fakes"].shape == (4, 1, 32, 32)
    assert output["latents"].shape == (4, 4)
    assert not output["fakes"].requires_grad
    assert output["loss"] == pytest.approx(output["g_loss"] + output["d_loss"])
    assert -1.0 <= output["r_t"] <= 1.0
    assert output["p"] == pytest.approx(0.2)
    assert completed == [1]
    assert trainer.images_seen == 4


def test_training_moves_both_networks_and_the_average_lags_behind(new_trainer: NewTrainer) -> None:
    trainer = new_trainer(ema_kimg=0.01, ema_rampup=100.0)
    before = {name: copy.deepcopy(getattr(trainer, name).state_dict()) for name in ("generator", "discriminator")}
    trainer.run()
    for name, state in before.items():
        moved = {
            key for key, value in getattr(trainer, name).state_dict().items() if not torch.equal(value, state[key])
        }
        assert moved == {key for key in state if key not in ("mapping.mean", "mapping.spread")}
    start, end = before["generator"], trainer.generator.state_dict()
    for key, mean in trainer.average.named_parameters():
        assert 0.0 < float((mean - start[key]).norm()) < float((end[key] - start[key]).norm()) * 2
        assert not torch.equal(mean, end[key])


def test_a_discriminator_of_many_logits_needs_no_r1(new_trainer: NewTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_penalty(*_: Tensor) -> Tensor:
        raise AssertionError("R1 was evaluated at weight 0")

    monkeypatch.setattr("bundle.training.stylegan2_trainer.r1_penalty", no_penalty)
    discriminator = ProjectedDiscriminator(side=64, channels=4)
    trainer = new_trainer(discriminator=discriminator, r1_gamma=0.0, discriminator_learning_rate=1e-3)
    before = copy.deepcopy(dict(discriminator.named_parameters()))
    frozen = {
        name: value.clone() for name, value in discriminator.named_buffers() if name.startswith(("trunk.", "mixing."))
    }
    seen: list[Tensor] = []
    update = trainer.augment.update

    def watched(logits: Tensor, number: int) -> None:
        seen.append(logits)
        update(logits, number)

    monkeypatch.setattr(trainer.augment, "update", watched)
    trainer.run()
    assert all(not torch.equal(value, before[name]) for name, value in discriminator.named_parameters())
    assert len(frozen) > 30
    assert all(torch.equal(discriminator.get_buffer(name), value) for name, value in frozen.items())
    assert trainer.discriminator_optimizer.param_groups[0]["lr"] == 1e-3
    assert [logits.shape for logits in seen] == [(4,)] * 6  # one sign of an image


@pytest.mark.parametrize("ramp", [100.0, None])
def test_average_by_hand(new_trainer: NewTrainer, ramp: float | None) -> None:
    """After a half-life of images, half of the old average is left."""
    trainer = new_trainer(ema_kimg=0.008, ema_rampup=ramp)
    states: list[Tensor] = []

    def keep() -> None:
        states.append(trainer.generator.synthesis.const.detach().clone())

    mean = trainer.average.synthesis.const.detach().clone()
    trainer.add_event_handler(Events.ITERATION_COMPLETED, keep)
    trainer.run()
    for state in states:
        mean = mean * 0.5 ** (4 / 8) + state * (1 - 0.5 ** (4 / 8))
    torch.testing.assert_close(trainer.average.synthesis.const, mean)


def test_average_forgets_the_start_quickly(new_trainer: NewTrainer) -> None:
    """With a ramp of 0.05 the half-life after the first batch is a twentieth of it."""
    trainer = new_trainer(max_epochs=1, epoch_length=1)
    trainer.run()
    for mean, value in zip(trainer.average.parameters(), trainer.generator.parameters(), strict=True):
        torch.testing.assert_close(mean, value, rtol=1e-4, atol=1e-5)


def test_one_iteration_by_hand(new_trainer: NewTrainer) -> None:
    """The engine's first step against the losses written out, without augmentation and autocast."""
    trainer = new_trainer(max_epochs=1, epoch_length=1, augment=AdaptiveAugment(p=0.0, target=None), amp=False, seed=7)
    generator, discriminator = copy.deepcopy(trainer.generator), copy.deepcopy(trainer.discriminator)
    trainer.run()
    reals, z = trainer.state.output["reals"], trainer.state.output["latents"]
    label = torch.as_tensor(trainer.state.batch["label"])

    fakes = generator.synthesis.unclamped(generator.mapping(z, label))
    torch.testing.assert_close(trainer.state.output["fakes"], fakes.detach())
    optimizer = lazy_adam(list(discriminator.parameters()), 0.0025, (0.0, 0.99), 2)
    points = reals.clone().requires_grad_(True)
    real_logits = discriminator(points, label)
    (gradient,) = torch.autograd.grad(real_logits.sum(), points, create_graph=True)
    loss = -F.logsigmoid(real_logits).mean() - F.logsigmoid(-discriminator(fakes.detach(), label)).mean()
    assert trainer.state.output["d_loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    r1 = gradient.square().sum(dim=(1, 2, 3)).mean()
    (loss + trainer.r1_gamma / 2 * 2 * r1).backward()  # every second iteration, so twice
    optimizer.step()
    g_loss = -F.logsigmoid(discriminator(fakes, label)).mean()
    # Adam's first step is lr times the gradient's sign: compare gradients, whose small values are not blown up.
    torch.testing.assert_close(
        [parameter.grad for parameter in trainer.discriminator.parameters()],
        [parameter.grad for parameter in discriminator.parameters()],
        rtol=1e-3,
        atol=1e-6,
    )
    assert trainer.state.output["g_loss"] == pytest.approx(float(g_loss.detach()), rel=1e-3)


def test_r1_runs_in_its_turn(new_trainer: NewTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[int] = []
    trainer = new_trainer(max_epochs=2, epoch_length=3, r1_interval=3)

    def penalty(logits: Tensor, images: Tensor) -> Tensor:
        numbers.append(trainer.state.iteration)
        assert logits.dtype == torch.float32
        return logits.sum() * 0.0

    monkeypatch.setattr("bundle.training.stylegan2_trainer.r1_penalty", penalty)
    trainer.run()
    assert numbers == [1, 4]


@pytest.mark.parametrize("name", ["generator", "discriminator"])
def test_gradient_that_is_no_number_never_reaches_the_weights(new_trainer: NewTrainer, name: str) -> None:
    trainer = new_trainer()
    network = getattr(trainer, name)

    def spoil(gradient: Tensor) -> Tensor:
        return gradient * torch.inf if trainer.state.iteration == 3 else gradient

    next(network.parameters()).register_hook(spoil)
    with pytest.raises(DivergedError, match=f"The gradient of the {name} is (nan|inf) in iteration 3"):
        trainer.run()
    assert all(bool(value.isfinite().all()) for value in network.state_dict().values())


def test_inferer_calls_the_discriminator(new_trainer: NewTrainer) -> None:
    calls: list[nn.Module] = []

    def inferer(images: Tensor, network: nn.Module, label: Tensor) -> Tensor:
        calls.append(network)
        return network(images, label)

    trainer = new_trainer(inferer=inferer, max_epochs=1, epoch_length=1)
    trainer.run()
    assert calls == [trainer.discriminator] * 4  # fakes, reals, R1, and the generator's step


def test_same_seed_same_bits_and_other_seed_other_weights(new_trainer: NewTrainer) -> None:
    states = []
    for seed, state_before in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(state_before)  # the bits come from the seed, not from what ran before
        trainer = new_trainer(seed=seed)
        trainer.run()
        states.append(trainer.training_state())
    assert_same_bits(states[0], states[1])
    assert not torch.equal(states[0]["generator"]["synthesis.const"], states[2]["generator"]["synthesis.const"])


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_run_that_goes_on_has_the_bits_of_one_never_stopped(new_trainer: NewTrainer, tmp_path: Path, stop: int) -> None:
    """Stopped within and at the end of an epoch, with and without R1 and ADA in the iterations on both sides."""
    whole = new_trainer()
    whole.run()
    first = new_trainer()

    @first.on(Events.ITERATION_COMPLETED(once=stop))
    def save_and_break_off(engine: Engine) -> None:
        torch.save(first.training_state(), tmp_path / "state.pt")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = new_trainer()
    second.load_training_state(torch.load(tmp_path / "state.pt", weights_only=True))
    numbers: list[int] = []
    second.add_event_handler(Events.ITERATION_COMPLETED, lambda: numbers.append(second.state.iteration))
    second.run()
    assert numbers == list(range(stop + 1, 7))
    assert second.state.epoch == 2
    assert_same_bits(second.training_state(), whole.training_state())


def test_finished_run_does_not_train_again_and_more_epochs_go_on(new_trainer: NewTrainer) -> None:
    short = new_trainer(max_epochs=1)
    short.run()
    again = new_trainer(max_epochs=1)
    again.load_training_state(short.training_state())
    assert again.is_finished
    again.run()
    assert_same_bits(again.training_state(), short.training_state())
    longer, whole = new_trainer(), new_trainer()
    longer.load_training_state(short.training_state())
    for trainer in (longer, whole):
        trainer.run()
    assert_same_bits(longer.training_state(), whole.training_state())


def test_measuring_between_iterations_changes_no_bit(new_trainer: NewTrainer) -> None:
    plain, disturbed = new_trainer(), new_trainer()
    disturbed.add_event_handler(Events.ITERATION_COMPLETED, lambda: torch.randn(7))
    for trainer in (plain, disturbed):
        trainer.run()
    assert_same_bits(plain.training_state(), disturbed.training_state())


def test_loader_holds_every_class(tiny_dataset: Path) -> None:
    data = Dataset([{"image": torch.full((1, 2, 2), float(i)), "label": i % 2, "split": "train"} for i in range(6)])
    batch = next(iter(balanced_loader(data, 4, seed=0)))
    assert sorted(batch["label"].tolist()) == [0, 0, 1, 1]
    assert torch.equal(batch["image"][:, 0, 0, 0].long() % 2, batch["label"])


# The configuration, from the command line's side.

OPTIONS: dict[str, Any] = {"resolution": 32, "batch_size": 2, "total_kimg": 0.012, "epoch_kimg": 0.004, "seed": 3}


def train(dataset_dir: Path, output_dir: Path, **options: Any) -> None:
    """Runs configs/train_gan.json as the command line does."""
    monai.bundle.run(
        config_file=str(ROOT / "configs" / "train_gan.json"),
        bundle_root=str(ROOT),
        logging_file=False,  # type: ignore[arg-type]
        dataset_dir=str(dataset_dir),
        output_dir=str(output_dir),
        device="cpu",
        **{**OPTIONS, "tracking_uri": f"sqlite:///{output_dir.parent / 'mlruns.db'}", **options},
    )


@pytest.mark.parametrize(("draw_extra", "shown"), [(True, {"train", "extra"}), (False, {"train"})])
def test_extra_images_are_drawn_or_only_counted(
    tiny_dataset: Path, tmp_path: Path, draw_extra: bool, shown: set[str]
) -> None:
    more = tmp_path / "more"
    more.mkdir()
    random = np.random.default_rng(0)
    for label in (0, 1):
        Image.fromarray(random.integers(0, 256, (40, 40), dtype=np.uint8)).save(more / f"{label}.png")
    (more / "labels.csv").write_text("image,label,split\n0.png,0,extra\n1.png,1,extra\n", encoding="utf-8")
    config = ConfigParser(ConfigParser.load_config_file(ROOT / "configs" / "train_gan.json"))
    config["bundle_root"], config["dataset_dir"] = str(ROOT), [str(tiny_dataset), str(more)]
    config["output_dir"], config["resolution"], config["draw_extra"] = str(tmp_path / "out"), 32, draw_extra
    assert {item["split"] for item in config.get_parsed_content("train#dataset")} == shown
    assert weights_info(config.get_parsed_content("data"), 0)["n_images"] == 30  # 28 of train, and 2 of extra


def pooled(images: Tensor, squeezenet_file: Any = None, **kwargs: Any) -> Tensor:
    """In place of SqueezeNet's features."""
    return F.adaptive_avg_pool2d(images, 4).flatten(1)


def results(output_dir: Path) -> dict[str, Any]:
    """Everything that a run has trained."""
    state = torch.load(output_dir / "checkpoints" / "gan.pt", weights_only=True)
    return {**state, "files": {path.name: path.read_bytes() for path in (output_dir / "models").iterdir()}}


@pytest.fixture(scope="module")
def small_measures() -> Iterator[None]:
    """Measures and pictures of 8 images, without SqueezeNet."""
    latents = samples.fixed_latents
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(best_generator, "squeezenet_features", pooled)
        patch.setattr(best_generator, "lpips_model", lambda squeezenet_file: None)
        patch.setattr(
            best_generator, "mean_pairwise", lambda images, model, device: float(images.flatten(1).var(0).mean())
        )
        for module in (best_generator, samples):
            patch.setattr(module, "fixed_latents", lambda n, *arguments: latents(8, *arguments))
        yield


@pytest.fixture(scope="module", params=["residual", "projected"])
def kind(request: pytest.FixtureRequest, resnet_file: Path) -> dict[str, str]:
    """The options of each discriminator."""
    options = {"discriminator": str(request.param)}
    return {**options, "resnet18_file": str(resnet_file)} if request.param == "projected" else options


@pytest.fixture(scope="module")
def whole_run(
    small_measures: None, tiny_dataset: Path, kind: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run that nothing stopped."""
    output_dir = tmp_path_factory.mktemp("runs") / "whole"
    train(tiny_dataset, output_dir, **kind)
    return output_dir


def test_configuration_trains(whole_run: Path) -> None:
    assert {path.name for path in (whole_run / "models").iterdir()} == {
        f"{name}.{suffix}" for name in ("generator", "discriminator") for suffix in ("pt", "json")
    }
    _, info = load_weights(whole_run / "models" / "generator.pt")
    assert info["images_seen"] == 12
    assert info["class_names"] == ["normal", "tuberculosis"]
    assert set(info["scores"]) == {"kid_val", "frechet_val", "features", "spread"}
    assert str(whole_run) not in str(info)
    assert [path.name for path in (whole_run / "samples").iterdir()] == ["kimg_000000.png"]


def test_checkpoint_and_record_name_the_options(whole_run: Path, kind: dict[str, str]) -> None:
    """By the names that earlier versions wrote: a run of theirs is resumed."""
    given = {"resolution": 32, "batch_size": 2, "seed": 3, "init_from": None, "draw_extra": True}
    defaults = {"learning_rate": 0.0015, "variety": 4.0, "ema_kimg": 3.0}
    augment = {"augment": "adaptive", "augment_p": 0.3, "augment_target": 0.6, "augment_kimg": 100.0}
    of_kind: dict[str, Any] = {
        "projected": {
            "discriminator": "ProjectedDiscriminator",
            "discriminator_learning_rate": 0.0005,
            "r1_gamma": 0.0,
        },
        "residual": {
            "discriminator": "Discriminator",
            "discriminator_learning_rate": 0.0015,
            "r1_gamma": default_r1_gamma(32, 2),
        },
    }[kind["discriminator"]]
    wanted = {**given, **defaults, **augment, **of_kind}
    content = torch.load(whole_run / "checkpoints" / "gan.pt", weights_only=True)
    split_sha256 = load_weights(whole_run / "models" / "generator.pt")[1]["split_sha256"]
    assert content["settings"] == {**wanted, "amp": True, "split_sha256": split_sha256}
    assert content["trainer"].keys() == {
        *("iteration", "images_seen", "generator", "discriminator", "average", "augment", "variety_loss"),
        *("generator_optimizer", "discriminator_optimizer"),
    }
    client = mlflow.MlflowClient(f"sqlite:///{whole_run.parent / 'mlruns.db'}")
    experiment = client.get_experiment_by_name("train_gan")
    assert experiment is not None
    recorded = client.search_runs([experiment.experiment_id], order_by=["start_time"])[0].data.params
    assert recorded.pop("dataset_dir")
    length = {"total_kimg": 0.012, "max_epochs": 3, "epoch_length": 2}  # MONAI's handler adds the last two
    assert recorded == {name: str(value) for name, value in {**wanted, **length, "calibrate": True}.items()}


def test_stopped_run_says_so_and_goes_on_to_the_same_bits(
    whole_run: Path,
    tiny_dataset: Path,
    kind: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    small_measures: None,
) -> None:
    output_dir = whole_run.with_name("stopped")
    previous = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        step = StyleGAN2Trainer._train_generator

        def stopped_step(self: StyleGAN2Trainer, *args: Any) -> float:
            if self.state.iteration == 3:
                signal.raise_signal(signal.SIGTERM)
            return step(self, *args)

        patch.setattr(StyleGAN2Trainer, "_train_generator", stopped_step)
        with pytest.raises(SystemExit) as stopped:
            train(tiny_dataset, output_dir, **kind)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert "Stopped at iteration 3" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == previous
    assert torch.load(output_dir / "checkpoints" / "gan.pt", weights_only=True)["trainer"]["iteration"] == 3
    train(tiny_dataset, output_dir, **kind)
    assert_same_bits(results(output_dir), results(whole_run))


KILLED = """
import json, os, signal, sys
import torch
from pathlib import Path
from tests.training.test_stylegan2_trainer import train
save, numbers = torch.save, []
def killed(content, file):
    numbers.append(1)
    if "trainer" in content and content["trainer"]["iteration"] == 4:
        file.write(b"half a checkpoint")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save(content, file)
torch.save = killed
train(Path(sys.argv[1]), Path(sys.argv[2]), **json.loads(sys.argv[3]))
"""


def test_killed_run_goes_on_to_the_same_bits(
    whole_run: Path, tiny_dataset: Path, kind: dict[str, str], small_measures: None
) -> None:
    """kill -9 in the middle of writing the second checkpoint: the run goes on from the first."""
    output_dir = whole_run.with_name("killed")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tiny_dataset), str(output_dir), json.dumps(kind)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert torch.load(output_dir / "checkpoints" / "gan.pt", weights_only=True)["trainer"]["iteration"] == 2
    train(tiny_dataset, output_dir, **kind)
    assert_same_bits(results(output_dir), results(whole_run))


def test_finished_run_says_so(
    whole_run: Path,
    tiny_dataset: Path,
    kind: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def no_iteration(self: StyleGAN2Trainer, *args: Any) -> None:
        raise AssertionError("a finished run trained again")

    monkeypatch.setattr(StyleGAN2Trainer, "_iteration", no_iteration)
    before = results(whole_run)
    train(tiny_dataset, whole_run, **kind)
    assert "is a finished run of 12 images. Raise total_kimg" in capsys.readouterr().out
    assert_same_bits(results(whole_run), before)


def test_other_options_are_refused_by_name(whole_run: Path, tiny_dataset: Path, kind: dict[str, str]) -> None:
    before = results(whole_run)
    with pytest.raises(RuntimeError) as caught:
        train(tiny_dataset, whole_run, **kind, ema_kimg=0.5)
    cause: BaseException = caught.value
    while cause.__cause__ is not None:
        cause = cause.__cause__
    assert isinstance(cause, CheckpointError)
    assert "was trained with ema_kimg = 3.0, now it is 0.5. Give the old value to resume" in str(cause)
    assert_same_bits(results(whole_run), before)


@pytest.mark.parametrize(("augment", "moves"), [("fixed", False), ("adaptive", True)])
def test_augmentation_is_adaptive_or_fixed(
    augment: str, moves: bool, tiny_dataset: Path, tmp_path: Path, small_measures: None
) -> None:
    train(tiny_dataset, tmp_path / "run", discriminator="residual", augment=augment, augment_p=0.5, augment_kimg=0.05)
    state = torch.load(tmp_path / "run" / "checkpoints" / "gan.pt", weights_only=True)
    assert (float(state["trainer"]["augment"]["p"]) != 0.5) is moves
