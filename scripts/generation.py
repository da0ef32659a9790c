# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""What ``generate`` runs: end points, walk, gate and cohort put together."""

from __future__ import annotations

import dataclasses
import logging
import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import monai
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from torch import Tensor
from tqdm import tqdm

from bundle.allocator import keep_freed_memory
from bundle.cohort.comparison import compare_paths, comparison_table
from bundle.cohort.datasheet import datasheet
from bundle.cohort.ledger import CohortError, WalkLedger, differing_keys
from bundle.cohort.writer import verify_cohort, write_cohort
from bundle.data import MODALITIES, DatasetDir, ImageData, Modality, open_dataset
from bundle.figures import from_uint8, save_png
from bundle.figures.walks import path_picture, save_course, save_nearest
from bundle.files import content_digest, sweep_temporary, write_json
from bundle.gate.drawing import synthesise
from bundle.gate.gate import Gate
from bundle.latent.pairs import pairs_per_block
from bundle.lock import run_lock
from bundle.markup import file_size, printable
from bundle.metrics.features import FEATURES, TrunkUnavailable
from bundle.metrics.lpips import lpips_model, nearest
from bundle.networks.latent_guides import LATENT_GUIDES
from bundle.networks.model_set import GENERATION_NETWORKS, ModelSet
from bundle.walk.guides import Guides, ImageGuides, LatentGuides
from bundle.walk.inferer import SETTINGS
from bundle.walk.objective import make_objective

__all__ = [
    "GenerationProgress",
    "default_guides",
    "default_output_dir",
    "generate",
    "generation_networks",
    "generation_settings",
    "join_processes",
    "open_training_data",
    "plan_ledger",
    "prepare_pairs",
    "walk_guides",
    "walk_weights",
]

logger = logging.getLogger(__name__)

# Pairs of each class that the private pictures show, and that walked and straight paths are compared on.
PICTURED_PAIRS = 2
COMPARED_PAIRS = 8


def join_processes(device: str) -> None:
    """Lets the processes that PyTorch's launcher has started share the work; a single one goes on alone.

    Args:
        device: where they compute; of several GPUs, each process takes its own.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.distributed.is_initialized():
        idist.initialize("nccl" if device.startswith("cuda") else "gloo")


def default_guides(models_dir: str, objective: str) -> str:
    """Says what the walk asks about its points.

    Args:
        models_dir: folder of the networks.
        objective: name of the walk's objective.

    Returns:
        ``latent`` where the guides' students are there, else ``image``; the published algorithm knows of none.
    """
    if objective == "published":
        return "image"
    if all((Path(str(models_dir)) / f"{name}.json").is_file() for name in LATENT_GUIDES):
        return "latent"
    logger.warning(
        "%s has no latent guides: the walk asks the guides themselves, at many times the cost. "
        "configs/train_latent_guides.json trains some.",
        models_dir,
    )
    return "image"


def walk_weights(modality: str | Modality) -> dict[str, float]:
    """Looks up what the modality's walks give other weights to than the objective itself, by the names of its fields.

    Of a name that is no preset, `check_options` has yet to complain.
    """
    preset = MODALITIES.get(modality, Modality) if isinstance(modality, str) else modality
    return {"lambda_class": preset.lambda_class, "lambda_prior": preset.lambda_prior}


def generation_networks(guides: str) -> tuple[str, ...]:
    """Names the networks that a walk on these guides and the gate need."""
    return (*GENERATION_NETWORKS, *(LATENT_GUIDES if guides == "latent" else ()))


def walk_guides(models: ModelSet, guides: str, objective: str) -> Guides:
    """Puts together what the walk asks about its points.

    Args:
        models: networks, those of `generation_networks` at least.
        guides: ``latent`` or ``image``.
        objective: name of the walk's objective; ``published`` has no gradient where a pixel is saturated.
    """
    networks = models.networks
    if guides == "latent":
        return LatentGuides(networks["latent_identity"], networks["latent_class"])
    return ImageGuides(
        models.generator, networks["identity_guide"], networks["class_guide"], clamped_gradient=objective == "published"
    )


def _check_modality(models: ModelSet, modality: str | Modality) -> None:
    trained = models.infos["generator"]["modality"]
    if str(modality) != trained:
        raise CohortError(
            f"modality: the models are of {trained} images, and the settings are those of {modality} images. Name the "
            f"configuration file of {trained} behind configs/plan.json (--config_file "
            f"\"['configs/plan.json','configs/{trained}.json']\"; xray needs none), or other models."
        )


def generation_settings(
    models: ModelSet,
    modality: str | Modality,
    n_images: int,
    n_points: int,
    seed: int,
    classes: str | int | Sequence[str | int] | None,
    objective: str,
    guides: str,
    weights: Mapping[str, float],
    threshold: float,
    device: str | torch.device,
) -> dict[str, Any]:
    """Lists everything that the bits of a cohort depend on.

    Args:
        models: networks.
        modality: whose weights are the default; must be that of the models.
        n_images: images of the cohort.
        n_points: points of a path.
        seed: of the end points.
        classes: names or numbers of the classes wanted; None for all.
        objective: name of the walk's objective.
        guides: what the walk asks about its points, ``latent`` or ``image``.
        weights: of the objective's terms, see `bundle.walk.objective.make_objective`.
        threshold: highest identity probability that the gate lets pass.
        device: where the walk is computed.

    Returns:
        Plain values.

    Raises:
        CohortError: the models are of another kind of image or know no such class, there are more classes than images,
            or the published algorithm is to walk on latent guides.
    """
    _check_modality(models, modality)
    names = models.class_names
    several = isinstance(classes, list | tuple)
    wanted: list[Any] = list(names) if classes is None else list(classes) if several else [classes]  # type: ignore[arg-type]
    if not wanted:
        raise CohortError(f"classes: the list is empty. Name some of {', '.join(names)}, or leave classes out for all.")
    chosen = []
    for value in wanted:
        name = names[value] if type(value) is int and 0 <= value < len(names) else value
        if name not in names:
            raise CohortError(f"classes: {value!r} is not a class of these models, which know {', '.join(names)}.")
        chosen.append(str(name))
    if objective == "published" and guides == "latent":
        raise CohortError("guides: the published algorithm walks on the guides themselves. Leave guides out.")
    if n_images < len(set(chosen)):
        raise CohortError(
            f"n_images: {n_images} images cannot show {len(set(chosen))} classes. Ask for more, or for fewer classes."
        )
    return {
        "n_images": n_images,
        "n_points": n_points,
        "seed": seed,
        "classes": sorted(set(chosen), key=names.index),
        "objective": objective,
        "guides": guides,
        "walk": dataclasses.asdict(SETTINGS[objective]),
        "weights": dataclasses.asdict(make_objective(objective, weights)),
        "threshold": threshold,
        "block_size": pairs_per_block(guides, n_points),
        "device": torch.device(device).type,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "models": models.sha256(),
    }


def default_output_dir(modality: str, settings: dict[str, Any]) -> str:
    """Names a folder after the options, so that other options never meet another run's cohort."""
    return f"output/{modality}-{content_digest(settings, 10)}"


def plan_ledger(output_dir: str, settings: dict[str, Any], class_names: Sequence[str]) -> WalkLedger:
    """Makes the ledger of a cohort; its images are shared out evenly among the classes."""
    share, rest = divmod(settings["n_images"], len(settings["classes"]))
    quotas = {
        list(class_names).index(name): share + (position < rest) for position, name in enumerate(settings["classes"])
    }
    folder = Path(output_dir) / "private" / "walk"
    return WalkLedger(folder, settings, quotas, settings["n_points"], settings["block_size"])


def prepare_pairs(
    batch: dict[str, Any], device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, Tensor, tuple[()], dict[str, Tensor]]:
    """Hands a block of pairs to the inferer: latents [P, 2, z_dim], and the labels [P] once more by keyword."""
    label = batch["label"].to(device, non_blocking=non_blocking)
    return batch["latent"].to(device, non_blocking=non_blocking), label, (), {"label": label}


class GenerationProgress:
    """Progress bar over the images of the cohort, moving with each step of the walk, full only at the end.

    Args:
        ledger: says what is done.
    """

    def __init__(self, ledger: WalkLedger) -> None:
        self.ledger = ledger
        self._bar: Any = None
        self._step = 0
        self._started = 0.0
        self._before = 0
        self._estimated = False

    def attach(self, engine: Engine) -> None:
        """Registers the events that open, set and close the bar."""
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._block_done)
        engine.add_event_handler(Events.COMPLETED, self._close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._break_off)

    def step(self, points: Tensor) -> None:
        """Says that the walk, now at these points, does a step."""
        if self._bar is None:
            return
        self._step += 1
        steps = self.ledger.settings["walk"]["steps"]
        self._show(self.ledger.done()[0] + self.ledger.expected() * min(1.0, self._step / steps))
        self._bar.set_postfix_str(f"step {self._step} of at most {steps}", refresh=False)
        self._bar.update(0)

    def _show(self, images: float) -> None:
        # 99.5 % would be written as 100.
        wanted = self.ledger.done()[1]
        self._bar.n = max(0, min(int(images), wanted * 99 // 100, wanted - 1))

    def _open(self, engine: Engine) -> None:
        done, wanted = self.ledger.done()
        slow = 0.5 if sys.stderr.isatty() else 30.0
        self._started, self._before = time.monotonic(), done
        self._bar = tqdm(
            total=wanted,
            initial=min(done, wanted * 99 // 100),
            unit="image",
            desc="walking",
            mininterval=slow,
            dynamic_ncols=True,
            disable=idist.get_rank() > 0,
        )

    def _block_done(self, engine: Engine) -> None:
        self._step = 0
        if idist.get_world_size() > 1 and idist.get_rank() == 0:
            self.ledger.refresh()
        done, wanted = self.ledger.done()
        self._show(done)
        self._bar.update(0)
        if not self._estimated and done > self._before and idist.get_rank() == 0:
            self._estimated = True
            seconds = (time.monotonic() - self._started) / (done - self._before) * (wanted - done)
            if done < wanted:
                self._bar.write(
                    f"At the speed of the first block, the rest takes about {_duration(seconds)}.", sys.stderr
                )

    def _close(self, engine: Engine) -> None:
        self._bar.n = self.ledger.done()[0]
        self._bar.close()

    def _break_off(self, engine: Engine, error: BaseException) -> None:
        if self._bar is not None:
            self._bar.close()  # else what follows would be written behind it
        raise error


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def splits_home(models_dir: str, output_dir: str) -> Path:
    """Returns the folder whose ``private`` holds the split file that a data set is to be opened with.

    A training run keeps it beside its models; without one, a `split` column must say the same.
    """
    home = Path(models_dir).parent
    return home if (home / "private" / "splits.json").exists() else Path(output_dir)


def open_training_data(
    dataset_dir: DatasetDir | None,
    models_dir: str,
    output_dir: str,
    models: ModelSet,
    layout: str | Mapping[str, Any] = "auto",
    modality: str | Modality = "",
) -> ImageData | None:
    """Opens the real images that the models were trained on; None where no folder is given.

    Args:
        dataset_dir: the folder, or several.
        models_dir: of the models; beside it may lie the split file of the training.
        output_dir: of this command.
        models: the networks, whose JSONs name the kind of image.
        layout: see `bundle.data.open_dataset`.
        modality: preset; where the models are of another kind of image, the preset that they name.

    Raises:
        CohortError: the models were trained on other images or another split of them.
    """
    if not dataset_dir:
        return None
    info = models.infos["generator"]
    home = splits_home(models_dir, output_dir)
    preset = modality if str(modality) == info["modality"] else info["modality"]
    data = open_dataset(dataset_dir, home, preset, info["resolution"], info["seed"], layout)
    if data.split_sha256 != models.split_sha256:
        raise CohortError(
            f"dataset_dir: {dataset_dir} is not what the models in {models_dir} were trained on, or it is split "
            f"otherwise (hash of the split file). Name the folder of the training images, or leave dataset_dir out."
        )
    return data


def generate(
    evaluator: SupervisedEvaluator,
    ledger: WalkLedger,
    models: ModelSet,
    gate: Gate,
    output_dir: str,
    data: ImageData | None = None,
    trunk_file: str | None = None,
) -> None:
    """Makes a cohort, goes on with a broken-off one, or verifies a complete one.

    Of several processes, all walk and write images, and the first does the rest. While they do, they hold a lock on
    ``output_dir``, which the system lets go of when the first process ends, however it does.

    Args:
        evaluator: walks the pairs that the ledger asks for, and gives their outcome to the ledger.
        ledger: of this cohort.
        models: networks.
        gate: what judged the points.
        output_dir: gets ``cohort/`` and ``private/``.
        data: real training images, for the private figure of the distance to the nearest.
        trunk_file: LPIPS's trunk for that figure; None lets torchvision find it.

    Raises:
        CohortError: the folder holds another run's cohort, or a damaged one, or hardly anything passes the gate.
        InUseError: another run is making a cohort there.
    """
    keep_freed_memory()
    cohort = Path(output_dir) / "cohort"
    # A cohort takes its name when it is whole: one that is there can be verified beside any other run.
    if os.path.lexists(cohort):
        if idist.get_rank() == 0:
            _verify(cohort, ledger.settings)
        return
    with run_lock(output_dir, Path(output_dir) / "private" / "generate.lock"):
        if os.path.lexists(cohort):  # made by a run that has ended just now
            if idist.get_rank() == 0:
                _verify(cohort, ledger.settings)
            return
        _make(evaluator, ledger, models, gate, cohort, data, trunk_file)


def _verify(cohort: Path, settings: dict[str, Any]) -> None:
    manifest = verify_cohort(cohort)
    differing = differing_keys(manifest["configuration"], settings)
    if differing:
        raise CohortError(
            f"{cohort} was made with other options ({', '.join(differing)}) and is not overwritten. Name another "
            f"output_dir, or remove it."
        )
    print(f"{printable(str(cohort))} is complete: {len(manifest['files'])} files, each as the manifest says.")


def _make(
    evaluator: SupervisedEvaluator,
    ledger: WalkLedger,
    models: ModelSet,
    gate: Gate,
    cohort: Path,
    data: ImageData | None,
    trunk_file: str | None,
) -> None:
    is_first = idist.get_rank() == 0
    private = cohort.parent / "private"
    if is_first:
        sweep_temporary(cohort.parent)
        sweep_temporary(private)
    ledger.open()
    if is_first:
        _announce(ledger, models, cohort.parent)
    if next(ledger.due(), None) is not None:
        evaluator.run()
    if is_first:
        _look_at_paths(ledger, models, gate, private, data, trunk_file)
    manifest = _manifest(ledger, models)
    licence = str(models.infos["generator"].get("licence", "Not stated by whoever trained the networks."))
    images = ((label, image) for label in ledger.quotas for image in ledger.images(label))
    write_cohort(cohort, images, models.class_names, manifest, datasheet(manifest, licence))
    if not is_first:
        return
    judged = sum(counts["judged"] for counts in manifest["gate"].values())
    passed = sum(counts["passed"] for counts in manifest["gate"].values())
    print(
        f"{passed} of {judged} points passed the gate.\nThe cohort: {printable(str(cohort))}\n"
        f"Not to be shared: {printable(str(private))}"
    )


def _announce(ledger: WalkLedger, models: ModelSet, output_dir: Path) -> None:
    """Says what a run will take before it takes it."""
    done, wanted = ledger.done()
    info = models.infos["generator"]
    pixels = info["channels"] * info["resolution"] ** 2
    block = ledger.block_size * ledger.n_points
    paths = sum(-(-ledger.missing(label) // block) * ledger.block_size for label in ledger.quotas)
    # The pixels and points of each point in private/, and PNGs of two thirds of their pixels, as a rule, in cohort/.
    size = paths * ledger.n_points * (pixels + 8 * models.generator.w_dim) + 0.7 * wanted * pixels
    free = shutil.disk_usage(output_dir).free
    print(
        f"{wanted} images of {info['resolution']} x {info['resolution']} pixels, of which {done} are walked. The rest: "
        f"at least {paths} paths of {ledger.n_points} points; {file_size(size)} on a disk with {file_size(free)} free.",
        flush=True,
    )
    if size > free:
        logger.warning(
            "%s has %s free, and this cohort takes at least %s: the disk will be full before the end. Ask for fewer "
            "images, make room, or name another output_dir.",
            output_dir,
            file_size(free),
            file_size(size),
        )


def _manifest(ledger: WalkLedger, models: ModelSet) -> dict[str, Any]:
    info = models.infos["generator"]
    names = models.class_names
    return {
        "configuration": ledger.settings,
        "modality": info["modality"],
        "resolution": info["resolution"],
        "preprocessing": info.get("preprocessing"),
        "split_sha256": info["split_sha256"],
        "class_names": list(names),
        "gate": {names[label]: {"images": quota, **ledger.counts(label)} for label, quota in ledger.quotas.items()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "monai": monai.__version__,
        },
    }


def _look_at_paths(
    ledger: WalkLedger, models: ModelSet, gate: Gate, folder: Path, data: ImageData | None, trunk_file: str | None
) -> None:
    """Draws and measures walked paths beside straight ones, in the private folder."""
    compared: list[tuple[int, Tensor, Tensor]] = []
    pictured: list[tuple[str, Tensor, Tensor]] = []
    courses: list[tuple[str, Tensor]] = []
    for label in ledger.quotas:
        for index, record in zip(range(COMPARED_PAIRS), ledger.records(label), strict=False):
            linear, plan = map(from_uint8, (synthesise(models.generator, record["w_linear"]), record["image"]))
            compared.append((label, linear, plan))
            if index < PICTURED_PAIRS:
                caption = f"{printable(models.class_names[label])} {index}"
                pictured.append((caption, linear, plan))
                courses.append((caption, record["course"]))
    save_png(path_picture(pictured), folder / "paths.png")
    save_course(courses, folder / "losses.png")
    distance = None
    if data is not None or trunk_file is not None:  # else nobody has asked for what may need a download
        try:
            distance = lpips_model(trunk_file)
        except TrunkUnavailable as error:
            logger.warning("Neither the paths' variety nor the distance to the nearest image is measured: %s", error)
    reals = None if data is None else data.tensors(("train", "extra"))[0]
    comparison = compare_paths(compared, models.networks["identity_guide"], gate, distance, reals)
    write_json(folder / "paths.json", comparison)
    print(f"{len(compared)} paths, straight and walked:\n{comparison_table(comparison)}")
    if distance is not None and reals is not None:
        curves = [
            (caption, nearest(linear, reals, distance), nearest(plan, reals, distance))
            for caption, linear, plan in pictured
        ]
        save_nearest(curves, FEATURES, len(reals), folder / "nearest.png")
