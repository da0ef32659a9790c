# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""The command ``generate``: makes a cohort of walked pairs, completes an interrupted or verifies a complete one."""

from __future__ import annotations

import logging
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import monai
import torch
from monai.engines import SupervisedEvaluator
from torch import Tensor

from bundle.allocator import keep_freed_memory
from bundle.cohort.datasheet import datasheet
from bundle.cohort.export import add_formats, is_to_change
from bundle.cohort.formats import FORMATS, PNG, chosen_formats
from bundle.cohort.ledger import CohortError, WalkLedger, differing_keys
from bundle.cohort.paths import NEAREST, look_at_paths
from bundle.cohort.review_page import PAGE, has_page, write_page
from bundle.cohort.writer import CURE, verify_cohort, write_cohort
from bundle.data import ImageData
from bundle.files import sweep_temporary
from bundle.gate.gate import Gate
from bundle.latent.centroids import CentroidPairs
from bundle.lock import run_lock
from bundle.markup import file_size, printable
from bundle.networks.model_set import ModelSet

__all__ = ["generate", "join_processes", "prepare_pairs"]

logger = logging.getLogger(__name__)


def join_processes(device: str) -> None:
    """Joins the processes that PyTorch's launcher has started; does nothing in a single process.

    Args:
        device: device that computes; on ``cuda``, each process takes its own GPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.distributed.is_initialized():
        idist.initialize("nccl" if device.startswith("cuda") else "gloo")


def prepare_pairs(
    batch: dict[str, Any], device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, Tensor, tuple[()], dict[str, Tensor]]:
    """Returns a block's latents [P, 2, z_dim] and labels [P] as arguments of the inferer, labels also by keyword."""
    label = batch["label"].to(device, non_blocking=non_blocking)
    return batch["latent"].to(device, non_blocking=non_blocking), label, (), {"label": label}


def generate(
    evaluator: SupervisedEvaluator,
    ledger: WalkLedger,
    models: ModelSet,
    gate: Gate,
    output_dir: str,
    data: ImageData | None = None,
    squeezenet_file: str | None = None,
    formats: Any = PNG,
    centroids: CentroidPairs | None = None,
) -> None:
    """Makes a cohort, resumes an interrupted one, or verifies a complete one.

    If a complete cohort was made without `data`, the figure that needs them is made now; if it lacks files in one of
    the `formats`, these are added without walking again, and files in other formats stay. In a distributed run, all
    processes walk and write images, and the first does the rest. They hold a lock on ``output_dir``, which the system
    releases when the first process ends, even if it crashes.

    Args:
        evaluator: engine that walks the pairs that the ledger requests and records their outcome in it.
        ledger: record of the cohort's walked pairs.
        models: generator, guides and gate networks.
        gate: gate that evaluated the points.
        output_dir: folder that receives ``cohort/``, ``private/`` and the page `bundle.cohort.review_page.PAGE`.
        data: real training images, for the private figure of the distance to the nearest one.
        squeezenet_file: weights of LPIPS's SqueezeNet for that figure; None lets torchvision find them.
        formats: file formats of the images, see `bundle.cohort.formats.chosen_formats`.
        centroids: source of the end points; None for random samples.

    Raises:
        CohortError: a format is unknown, the folder holds another run's cohort or a damaged one, hardly any image
            passes the gate, or the centroids have no more pairs.
        InUseError: another run is making a cohort there.
    """
    keep_freed_memory()
    chosen = chosen_formats(formats)
    cohort, private = Path(output_dir) / "cohort", Path(output_dir) / "private"
    # The folder is renamed to its final name only when complete, so verifying it needs no lock.
    is_complete = os.path.lexists(cohort)
    if is_complete:
        _verify(cohort, ledger.settings, chosen)
        if data is None or not idist.broadcast(float(not (private / NEAREST).exists())):
            return
    with run_lock(output_dir, private / "generate.lock"):
        if not os.path.lexists(cohort):
            _make(evaluator, ledger, models, gate, cohort, data, squeezenet_file, chosen, centroids)
        elif not is_complete:  # completed by another run in the meantime
            _verify(cohort, ledger.settings, chosen)
        else:
            _look_again(ledger, models, gate, private, data, squeezenet_file)


def _verify(cohort: Path, settings: dict[str, Any], formats: Sequence[str]) -> None:
    """Compares a cohort with its manifest and the settings and adds missing formats, in the first process."""
    if idist.get_rank() > 0:
        return
    manifest = verify_cohort(cohort)
    differing = differing_keys(manifest["configuration"], settings)
    if differing:
        raise CohortError(
            f"{cohort} was made with other options ({', '.join(differing)}) and is not overwritten. Name another "
            f"output_dir, or remove it."
        )
    print(f"{printable(str(cohort))} is complete: {len(manifest['files'])} files, each as the manifest says.")
    if is_to_change(manifest, formats):
        add_formats(cohort, formats, CURE)
    if not has_page(manifest, cohort.parent / PAGE):
        write_page(cohort, manifest, cohort.parent / PAGE)


def _look_again(
    ledger: WalkLedger, models: ModelSet, gate: Gate, private: Path, data: ImageData | None, squeezenet_file: str | None
) -> None:
    """Makes the private figures of a complete cohort whose training images were not given when it was made."""
    ledger.open()
    if idist.get_rank() > 0:
        return
    if next(ledger.due(), None) is None:
        look_at_paths(ledger, models, gate, private, data, squeezenet_file)
    else:
        logger.warning(
            "%s is not drawn: %s lacks walked pairs of the cohort. Name another output_dir to walk them anew.",
            private / NEAREST,
            ledger.folder,
        )


def _make(
    evaluator: SupervisedEvaluator,
    ledger: WalkLedger,
    models: ModelSet,
    gate: Gate,
    cohort: Path,
    data: ImageData | None,
    squeezenet_file: str | None,
    formats: Sequence[str],
    centroids: CentroidPairs | None,
) -> None:
    is_first = idist.get_rank() == 0
    private = cohort.parent / "private"
    if is_first:
        sweep_temporary(cohort.parent)
        sweep_temporary(private)
    ledger.open()
    if is_first:
        _announce(ledger, models, cohort.parent, formats)
        if centroids is not None:
            print(centroids.clusters.describe(models.class_names), flush=True)
    if next(ledger.due(), None) is not None:
        if centroids is not None:
            centroids.make()
        evaluator.run()
    if is_first:
        look_at_paths(ledger, models, gate, private, data, squeezenet_file)
    manifest = _manifest(ledger, models)
    licence = str(models.infos["generator"].get("licence", "Not stated by those who trained the networks."))
    images = ((label, image) for label in ledger.quotas for image in ledger.images(label))
    write_cohort(cohort, images, models.class_names, manifest, datasheet(manifest, licence), formats)
    if not is_first:
        return
    write_page(cohort, verify_cohort(cohort), cohort.parent / PAGE)
    judged = sum(counts["judged"] for counts in manifest["gate"].values())
    passed = sum(counts["passed"] for counts in manifest["gate"].values())
    print(
        f"{passed} of {judged} points passed the gate.\nThe cohort: {printable(str(cohort))}\n"
        f"For its review: {printable(str(cohort.parent / PAGE))}\nNot to be shared: {printable(str(private))}"
    )


def _announce(ledger: WalkLedger, models: ModelSet, output_dir: Path, formats: Sequence[str]) -> None:
    """Prints how many paths and how much disk space a run will take."""
    done, wanted = ledger.done()
    info = models.infos["generator"]
    pixels = info["channels"] * info["resolution"] ** 2
    block = ledger.block_size * ledger.released
    wanted_of = [-(-ledger.missing(label) // block) * ledger.block_size for label in ledger.quotas]
    paths = sum(wanted_of if ledger.n_pairs is None else map(min, wanted_of, ledger.n_pairs.values()))
    # private/ stores the pixels and two float32 latents of each point, cohort/ the images in each format.
    released = sum(FORMATS[name].share for name in formats) * wanted * pixels
    size = paths * ledger.n_points * (pixels + 8 * models.generator.w_dim) + released
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
